//! Where a parameter graph's matrices and channel spaces stand in a drawing: in rows by depth, spaces between the
//! matrices that write and read them. Look at [`Layout`].

use crate::params::ParamGraph;
use std::collections::BTreeMap;

pub const WIDTH: f64 = 176.0;
pub const HEIGHT: f64 = 38.0;
const GAP: f64 = 14.0;
/// From one row to the next.
pub const ROW: f64 = 62.0;
/// More of one row stand below one another.
const MOST_ABREAST: usize = 5;

/// A rectangle's upper left corner.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Place {
    pub x: f64,
    pub y: f64,
}

impl Place {
    pub fn centre(self) -> f64 {
        self.x + WIDTH / 2.0
    }
}

/// Places of a graph's parts, from 0 on.
pub struct Layout {
    pub interfaces: Vec<Place>,
    /// By weight; `None` for what isn't a matrix.
    pub weights: Vec<Option<Place>>,
    pub width: f64,
    pub height: f64,
}

/// What stands in a row.
enum Part {
    Interface(usize),
    Weight(usize),
}

impl Layout {
    pub fn of(params: &ParamGraph) -> Self {
        let mut rows: BTreeMap<usize, Vec<Part>> = BTreeMap::new();
        for (i, interface) in params.interfaces.iter().enumerate() {
            rows.entry(2 * interface.depth).or_default().push(Part::Interface(i));
        }
        for (id, weight) in params.matrices() {
            rows.entry(2 * weight.depth + 1).or_default().push(Part::Weight(id.0));
        }
        let abreast = rows.values().map(Vec::len).max().unwrap_or(1).clamp(1, MOST_ABREAST);
        let width = abreast as f64 * (WIDTH + GAP) - GAP;
        let origin = Place { x: 0.0, y: 0.0 };
        let mut layout = Layout {
            interfaces: vec![origin; params.interfaces.len()],
            weights: vec![None; params.weights.len()],
            width,
            height: 0.0,
        };
        for line in rows.values().flat_map(|row| row.chunks(MOST_ABREAST)) {
            let left = (width - (line.len() as f64 * (WIDTH + GAP) - GAP)) / 2.0;
            for (k, part) in line.iter().enumerate() {
                let place = Place { x: left + k as f64 * (WIDTH + GAP), y: layout.height };
                match *part {
                    Part::Interface(i) => layout.interfaces[i] = place,
                    Part::Weight(i) => layout.weights[i] = Some(place),
                }
            }
            layout.height += ROW;
        }
        layout
    }
}
