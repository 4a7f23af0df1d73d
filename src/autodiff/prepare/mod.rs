//! From any file's graph to the working graph that rules understand: functions inlined, old operator forms
//! upgraded to opset 18, constants hoisted, decided branches inlined, the batch dimension made free.
