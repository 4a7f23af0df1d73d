//! Tables: one row of numbers a line, a header line, one column of labels.

use super::labels::Labels;
use super::options::DataOptions;
use super::{Column, Dataset, Form, Groups};
use crate::error::{Error, Result};
use crate::onnx::Tensor;
use std::io::BufRead;
use std::path::Path;

/// Opens a table. The label column is the one named by the options, else `y`, `label` or `target`, else the
/// last. All other columns together, but the one that names groups, are the input `x`.
pub fn open(path: &Path, options: &DataOptions) -> Result<Dataset> {
    let fail = |what: String| Error::data(path, what);
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut file = std::io::BufReader::new(file);
    let start = file.fill_buf().map_err(|e| Error::io(path, e))?;
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(delimiter(path, start))
        .trim(::csv::Trim::All)
        .from_reader(file);
    let header = reader.headers().map_err(|e| fail(e.to_string()))?.clone();
    let groups = options.groups.as_ref().and_then(|name| column(&header, name));
    let label = label_column(path, &header, groups, options)?;
    if label.is_some() && groups == label {
        let name = options.groups.as_deref().unwrap_or_default();
        return Err(fail(format!("column '{name}' can't name both the labels and the groups of rows"))
            .hint("--label says which column holds the labels"));
    }
    let (mut features, mut labels, mut group_names) = (vec![], vec![], vec![]);
    let mut rows = 0;
    for record in reader.records() {
        let record = record.map_err(|e| fail(e.to_string()))?;
        for (i, cell) in record.iter().enumerate() {
            if Some(i) == label {
                labels.push(cell.to_owned());
                continue;
            }
            if Some(i) == groups {
                group_names.push(cell.to_owned());
                continue;
            }
            let line = record.position().map_or(0, |p| p.line());
            let name = header.get(i).unwrap_or("");
            let place = format!("line {line}, column '{name}'");
            if cell.is_empty() {
                return Err(fail(format!("{place}: the cell is empty")).hint(
                    "every cell needs a number: fill in what is missing, for example with the column's mean",
                ));
            }
            let value: f64 = cell.parse().map_err(|_| fail(format!("{place}: '{cell}' is not a number")))?;
            features.push(value);
        }
        rows += 1;
    }
    let width = header.len() - label.is_some() as usize - groups.is_some() as usize;
    let values = Tensor::f64(&[rows, width], &features);
    let labels = label.map(|_| Labels::from_words(path, &labels)).transpose()?;
    let (labels, class_names) = labels.unzip();
    let inputs = vec![Column { name: "x".into(), values }];
    Ok(Dataset {
        path: path.to_owned(),
        inputs,
        labels,
        class_names: class_names.unwrap_or_default(),
        groups: groups.map(|_| Groups::new(group_names)),
        options: options.clone(),
        form: Form::Named,
    })
}

/// What stands between the cells of a table that starts so: where decimals have commas, spreadsheets write semicolons.
fn delimiter(path: &Path, start: &[u8]) -> u8 {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) {
        return b'\t';
    }
    let header = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    if header.contains(&b';') && !header.contains(&b',') { b';' } else { b',' }
}

fn column(header: &::csv::StringRecord, name: &str) -> Option<usize> {
    header.iter().position(|h| h.eq_ignore_ascii_case(name))
}

fn label_column(
    path: &Path,
    header: &::csv::StringRecord,
    groups: Option<usize>,
    options: &DataOptions,
) -> Result<Option<usize>> {
    let find = |name: &str| column(header, name);
    if header.iter().all(|h| h.parse::<f64>().is_ok()) {
        return Err(Error::data(path, "its first line holds numbers, not the names of the columns")
            .hint("give the table a header line, such as a,b,c,label"));
    }
    match &options.label {
        Some(name) => match find(name) {
            Some(i) => Ok(Some(i)),
            None => Err(Error::data(path, format!("there is no column '{name}' in it"))),
        },
        None => {
            let named = ["y", "label", "target"].iter().find_map(|name| find(name));
            let mut others = (0..header.len()).filter(|&i| Some(i) != groups);
            Ok(named.or_else(|| others.next_back().filter(|_| others.next().is_some())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn table(text: &str, options: &DataOptions) -> Result<Dataset> {
        let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        super::super::open(file.path(), options)
    }

    #[test]
    fn the_label_column_is_named_or_last() {
        let plain = DataOptions::default();
        let set = table("y,a,b\n1,2,3\n0,4,5\n", &plain).unwrap();
        assert_eq!(set.labels, Some(Labels::Classes(vec![1, 0])));
        assert_eq!(set.inputs[0].values.to_f64(), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(table("a,b,c\n1,2,0.5\n", &plain).unwrap().labels.unwrap().width(), 1);
        let named = table("a,kind\n1,cat\n2,ant\n", &plain).unwrap();
        assert_eq!(
            (named.labels, named.class_names),
            (Some(Labels::Classes(vec![1, 0])), vec!["ant".into(), "cat".into()])
        );
        let semicolons = table("a;label\n1;0\n2;1\n", &plain).unwrap();
        assert_eq!(semicolons.inputs[0].values.to_f64(), [1.0, 2.0]);
        assert_eq!(semicolons.labels, Some(Labels::Classes(vec![0, 1])));
        let chosen = DataOptions { label: Some("a".into()), ..plain };
        assert_eq!(table("a,b\n7,1\n", &chosen).unwrap().labels, Some(Labels::Classes(vec![7])));
    }

    #[test]
    fn a_column_may_say_which_rows_belong_together() {
        let options = DataOptions { groups: Some("who".into()), ..DataOptions::default() };
        let set = table("a,y,who\n1,0,ann\n2,1,bob\n3,1,ann\n", &options).unwrap();
        assert_eq!(set.inputs[0].values.to_f64(), [1.0, 2.0, 3.0]);
        assert_eq!(set.expect_groups().unwrap().unwrap().of(&[0, 1, 2]), [0, 1, 0]);
        // The last of the others is the label.
        assert_eq!(table("a,b,who\n1,5,x\n", &options).unwrap().labels, Some(Labels::Classes(vec![5])));
        assert!(table("a,y\n1,0\n", &options).unwrap().expect_groups().is_err());
        let same = DataOptions { label: Some("who".into()), ..options };
        assert!(table("a,who\n1,0\n", &same).is_err_and(|e| e.to_string().contains("both")));
    }

    #[test]
    fn what_is_no_table_of_numbers_is_refused() {
        let refusal = |text| table(text, &DataOptions::default()).err().unwrap().to_string();
        assert!(refusal("a,b\nx,1\n").contains("line 2, column 'a': 'x' is not a number"));
        assert!(refusal("a,b\n,1\n").contains("line 2, column 'a': the cell is empty"));
        assert!(refusal("a,b\n1,2\n3\n").contains("found record with 1 fields"));
        assert!(refusal("1,2\n3,4\n").contains("not the names of the columns"));
        assert!(refusal("a,b\n").contains("no rows"));
    }
}
