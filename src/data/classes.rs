//! Classes that have names: which number each has. Look at [`common`].

use super::{Dataset, Labels, natural_key};
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Most names that a message lists, besides the last.
const LISTED: usize = 10;

/// Names in the order of their classes' numbers: that of the alphabet, numbers at their ends by value. Each once.
pub fn in_order(mut names: Vec<String>) -> Vec<String> {
    names.sort_by_cached_key(|name| natural_key(name));
    names.dedup();
    names
}

/// The names of the classes of all `sets`, in the order of their numbers; none where no set names its classes. A set by itself
/// numbers the classes that it holds: one that lacks some would give the others different numbers.
///
/// # Errors
/// Another set has numbers for labels, and some class has a number for its name that isn't its own.
pub fn common(sets: &[&Dataset]) -> Result<Vec<String>> {
    let names = in_order(sets.iter().flat_map(|set| set.class_names.iter().cloned()).collect());
    let numbered =
        sets.iter().find(|set| set.class_names.is_empty() && matches!(set.labels, Some(Labels::Classes(_))));
    let other = |(place, name): (usize, &String)| name.parse().is_ok_and(|number: usize| number != place);
    match (numbered, names.iter().enumerate().any(other)) {
        (Some(set), true) => {
            let what = "its labels are numbers, those of the other data are words, and numbers among them";
            Err(Error::data(&set.path, what).hint("write all classes as numbers from 0 on, or all as words"))
        }
        _ => Ok(names),
    }
}

/// What the numbers of named classes are, for people.
pub fn numbering(names: &[String]) -> Option<String> {
    let last = names.len().checked_sub(1)?;
    let named = |i: usize| format!("{i} '{}'", names[i]);
    let mut listed: Vec<String> = (0..names.len().min(LISTED)).map(named).collect();
    if last > LISTED {
        listed.push("…".into());
    }
    if last >= LISTED {
        listed.push(named(last));
    }
    Some(format!("the classes are numbered in the order of their names: {}", listed.join(", ")))
}

/// What may be wrong with the numbers of named classes for a model that tells `count` apart.
pub fn doubt(names: &[String], count: usize) -> Option<String> {
    (!names.is_empty() && names.len() < count).then(|| {
        format!(
            "{} classes have names, but the model tells {count} apart: where one is missing, those behind it have the wrong numbers \
             (an empty folder counts as a class; tables and arrays may hold the numbers instead)",
            names.len()
        )
    })
}

impl Dataset {
    /// The same rows, with classes numbered as in `names`, which has all names of this set's.
    pub fn numbered_as(mut self, names: &[String]) -> Self {
        if self.class_names.is_empty() || self.class_names == names {
            return self;
        }
        let numbers: HashMap<&String, i64> = names.iter().zip(0..).collect();
        if let Some(Labels::Classes(classes)) = &mut self.labels {
            for class in classes {
                let name = usize::try_from(*class).ok().and_then(|i| self.class_names.get(i));
                *class = name.and_then(|name| numbers.get(name)).copied().unwrap_or(-1);
            }
        }
        self.class_names = names.to_vec();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Column;
    use crate::onnx::Tensor;

    fn set(names: &[&str], classes: &[i64]) -> Dataset {
        let values = Tensor::f32(&[classes.len(), 1], &vec![0.0; classes.len()]);
        let column = Column { name: "x".into(), values };
        let mut set = Dataset::new(vec![column], Some(Labels::Classes(classes.to_vec()))).unwrap();
        set.class_names = names.iter().map(|name| name.to_string()).collect();
        set
    }

    #[test]
    fn a_class_has_one_number_in_all_sets() {
        let (train, val) = (set(&["ant", "cat"], &[0, 1]), set(&["bee", "cat"], &[1, 0]));
        let names = common(&[&train, &val]).unwrap();
        assert_eq!(names, ["ant", "bee", "cat"]);
        let numbers = |set: Dataset| set.numbered_as(&names).labels;
        assert_eq!(numbers(train), Some(Labels::Classes(vec![0, 2])));
        assert_eq!(numbers(val), Some(Labels::Classes(vec![2, 1])));
        assert_eq!(numbers(set(&[], &[5])), Some(Labels::Classes(vec![5])));
    }

    #[test]
    fn numbers_at_the_end_of_names_count_by_value() {
        let names = in_order(["a10", "b", "a9", "a10"].map(String::from).to_vec());
        assert_eq!(names, ["a9", "a10", "b"]);
        assert_eq!(
            numbering(&names).unwrap(),
            "the classes are numbered in the order of their names: 0 'a9', 1 'a10', 2 'b'"
        );
        let many: Vec<String> = (0..12).map(|i| format!("c{i}")).collect();
        assert!(numbering(&many).unwrap().ends_with("9 'c9', …, 11 'c11'"));
        assert!(numbering(&many[..11]).unwrap().ends_with("9 'c9', 10 'c10'"));
        assert_eq!(numbering(&[]), None);
    }

    #[test]
    fn names_that_are_numbers_beside_numbers_are_refused_where_they_differ() {
        let numbers = set(&[], &[0, 1]);
        assert!(common(&[&set(&["0", "1"], &[0, 1]), &numbers]).is_ok());
        let error = common(&[&set(&["1", "n/a"], &[0, 1]), &numbers]).unwrap_err().to_string();
        assert!(error.contains("its labels are numbers"), "{error}");
    }

    #[test]
    fn fewer_names_than_classes_leave_a_doubt() {
        let names = ["a", "b"].map(String::from);
        assert!(doubt(&names, 3).is_some() && doubt(&names, 2).is_none() && doubt(&[], 3).is_none());
    }
}
