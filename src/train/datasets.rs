//! The data of a run, before any model looks at them.

use super::TrainConfig;
use super::examples::{Data, divide};
use crate::data::{DataOptions, Dataset, Usages};
use crate::error::{Error, Result};

/// Training, validation and test data.
pub struct DataSets {
    pub train: Dataset,
    /// Cut off the training data where absent.
    pub val: Option<Dataset>,
    pub test: Option<Dataset>,
    /// Rows for whatever wants no labels.
    pub unlabelled: Option<Dataset>,
    /// Of which two training rows each of `unlabelled` is made, where it is (`multiply`); else empty.
    pub made_of: Vec<[usize; 2]>,
}

/// Rows made of others where nobody said how many, and the training rows from which on none are made: what they add shrinks
/// with what there is (docs/transfer.md).
const MADE: usize = 2000;
const ENOUGH: usize = 1000;
/// Most memory for them, in bytes.
const MOST: usize = 256 << 20;

impl DataSets {
    /// The same rows, read with other options.
    pub fn with_options(&self, options: &DataOptions) -> Self {
        let part = |dataset: &Dataset| {
            let mut dataset = dataset.clone();
            dataset.options = options.clone();
            dataset
        };
        Self {
            train: part(&self.train),
            val: self.val.as_ref().map(part),
            test: self.test.as_ref().map(part),
            unlabelled: self.unlabelled.as_ref().map(part),
            made_of: self.made_of.clone(),
        }
    }

    pub(super) fn borrow(&self) -> Data<'_> {
        Data {
            train: &self.train,
            val: self.val.as_ref(),
            test: self.test.as_ref(),
            unlabelled: self.unlabelled.as_ref(),
            made_of: &self.made_of,
        }
    }

    /// Makes more rows of the training rows for whatever wants no labels, where there are none and few others; returns what was done.
    /// `usages` finds out what models make of the training data, where that is asked at all.
    ///
    /// # Errors
    /// So many rows were asked for, but of such data none can be made, or there are rows without labels already.
    pub(super) fn multiply(
        &mut self,
        config: &TrainConfig,
        usages: impl FnOnce(&Dataset) -> Result<Usages>,
    ) -> Result<Option<String>> {
        let count = match (config.made_rows, &self.unlabelled) {
            (Some(0), _) | (None, Some(_)) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(Error::usage("--made-rows have no labels, and --unlabelled gives such rows")
                    .hint("leave out one of the two"));
            }
            (count, None) => count,
        };
        let (rows, _) = divide(&self.train, self.val.as_ref(), config.seed)?;
        let rows = rows.unwrap_or_else(|| (0..self.train.rows()).collect());
        if count.is_none() && rows.len() >= ENOUGH {
            return Ok(None);
        }
        let row: usize = self.train.inputs.iter().map(|c| c.values.bytes().len()).sum();
        let most = MOST / (row / self.train.rows().max(1)).max(1);
        let usages = usages(&self.train)?;
        if let Some(made) = self.train.make_rows(&rows, count.unwrap_or(MADE.min(most)), &usages, config.seed)
        {
            (self.unlabelled, self.made_of) = (Some(made.dataset), made.of);
        }
        match (&self.unlabelled, count) {
            (None, Some(_)) => {
                Err(Error::data(&self.train.path, "no rows can be made of these (--made-rows)").hint(
                    "it needs two training rows at least; of several inputs each must be an image or words",
                ))
            }
            (Some(made), _) => Ok(Some(format!(
                "{} rows without labels were made of the {} for training (--made-rows)",
                made.rows(),
                rows.len()
            ))),
            (None, None) => Ok(None),
        }
    }
}
