//! Control flow.
//!
//! A decided `If` is inlined by preparation; what is left of it, and loops, refuse, so that weights that are only
//! reached through them are named instead of silently left untrained.

use super::{Context, Cotangents, Row, rule};

pub const TABLE: &[Row] = &[rule("If", refuse), rule("Loop", refuse), rule("Scan", refuse)];

fn refuse(c: &mut Context<'_>) -> Cotangents {
    let what = "has no gradient: which nodes run is decided while the model runs";
    Err(c.refuse(what).hint("freeze the weights before and inside this node with --freeze GLOB"))
}
