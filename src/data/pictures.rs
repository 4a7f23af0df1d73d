//! Pictures that have other channels than a model takes: grey to colour and back, as Pillow's `convert` does it, and what
//! a user is told of it. Look at [`Recolour`].

/// What kinds of pictures a folder holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pictures {
    pub all: usize,
    /// How many of them have no colours.
    pub grey: usize,
    /// How many were transparent somewhere; they are stored without that.
    pub transparent: usize,
}

impl Pictures {
    /// Channels in which all are stored.
    pub fn channels(&self) -> usize {
        if self.grey == self.all { 1 } else { 3 }
    }

    /// What was done to them for a model that takes so many channels; `None` where nothing was.
    pub fn note(&self, channels: usize) -> Option<String> {
        let converted = [
            (if channels == 3 { self.grey } else { 0 }, "from grey to RGB (its channel three times)"),
            (if channels == 1 { self.all - self.grey } else { 0 }, "from RGB to grey (luma)"),
            (self.transparent, "by dropping the alpha channel"),
        ];
        let told = converted.iter().filter(|(count, _)| *count > 0);
        let told: Vec<String> = told.map(|(count, how)| format!("{count} of {} {how}", self.all)).collect();
        (!told.is_empty()).then(|| format!("pictures were converted: {}", told.join(", ")))
    }
}

/// A change of the number of channels of a picture of bytes, channels first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recolour {
    /// From one to three.
    Repeat,
    /// From three to one.
    Luma,
}

impl Recolour {
    /// The one change that there is for pictures of this shape, and their shape after it.
    pub fn of(shape: &[usize]) -> Option<(Self, [usize; 3])> {
        match *shape {
            [1, h, w] => Some((Recolour::Repeat, [3, h, w])),
            [3, h, w] => Some((Recolour::Luma, [1, h, w])),
            _ => None,
        }
    }

    pub fn apply(self, from: &[u8]) -> Vec<u8> {
        match self {
            Recolour::Repeat => from.repeat(3),
            Recolour::Luma => {
                let (red, rest) = from.split_at(from.len() / 3);
                let (green, blue) = rest.split_at(red.len());
                red.iter().zip(green).zip(blue).map(|((&r, &g), &b)| luma([r, g, b])).collect()
            }
        }
    }
}

/// ITU-R 601 in Pillow's fixed-point form, so that models trained on its `convert("L")` see the same numbers.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471;
    ((sum + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_what_pillow_makes_of_colours() {
        // PIL.Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
        for (colour, grey) in [
            ([255, 0, 0], 76),
            ([0, 255, 0], 150),
            ([0, 0, 255], 29),
            ([10, 200, 90], 131),
            ([7, 7, 7], 7),
            ([255; 3], 255),
        ] {
            assert_eq!(luma(colour), grey, "{colour:?}");
        }
        assert_eq!(Recolour::Luma.apply(&[255, 0, 0, 255, 0, 0]), [76, 150]);
        assert_eq!(Recolour::Repeat.apply(&[1, 2]), [1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn notes_say_what_was_done_only() {
        let mixed = Pictures { all: 5, grey: 2, transparent: 1 };
        assert_eq!(
            mixed.note(3).unwrap(),
            "pictures were converted: 2 of 5 from grey to RGB (its channel three times), 1 of 5 by dropping the alpha channel"
        );
        assert!(
            mixed
                .note(1)
                .unwrap()
                .starts_with("pictures were converted: 3 of 5 from RGB to grey (luma), 1 of 5")
        );
        assert_eq!(Pictures { all: 5, grey: 0, transparent: 0 }.note(3), None);
        assert_eq!(Pictures { all: 5, grey: 5, transparent: 0 }.note(1), None);
    }
}
