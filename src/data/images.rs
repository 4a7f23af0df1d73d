//! Image folders: one folder a class, images inside.

use super::labels::Labels;
use super::options::DataOptions;
use super::{Column, Dataset, check_memory, file_name, subfolders};
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor};
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "gif", "webp"];

/// Opens a folder of folders: class `i` is the `i`-th folder by name. Pixels are kept as bytes, channels
/// first; the images are grey where all of the first few are, else RGB.
pub fn open(path: &Path, options: &DataOptions) -> Result<Dataset> {
    let mut files = vec![];
    let mut class_names = vec![];
    for (class, folder) in subfolders(path)?.into_iter().enumerate() {
        class_names.push(file_name(&folder));
        files.extend(images_in(&folder)?.into_iter().map(|f| (f, class as i64)));
    }
    let Some((first, _)) = files.first() else {
        return Err(Error::data(path, "there are no images in its folders"));
    };
    let probe = read(first)?;
    let [height, width] = options.size.unwrap_or([probe.height() as usize, probe.width() as usize]);
    let grey = files.iter().take(16).map(|(f, _)| read(f)).collect::<Result<Vec<_>>>()?.iter().all(is_grey);
    let channels = if grey { 1 } else { 3 };
    let shape = [files.len(), channels, height, width];
    let total = crate::onnx::element_count(&shape).ok_or_else(|| Error::data(path, "too many pixels"))?;
    check_memory(path, "the images", total as u64)?;
    let mut pixels = Vec::with_capacity(total);
    for (file, _) in &files {
        let image = read(file)?;
        if options.size.is_none() && (image.height() as usize, image.width() as usize) != (height, width) {
            let (h, w) = (image.height(), image.width());
            return Err(Error::data(file, format!("this image is {h}×{w}, others are {height}×{width}"))
                .hint("resize them all with --size HEIGHTxWIDTH"));
        }
        push_channels_first(image, [height, width], grey, &mut pixels);
    }
    let values = Tensor::new(DType::U8, &shape, pixels)?;
    Ok(Dataset {
        path: path.to_owned(),
        inputs: vec![Column { name: "x".into(), values }],
        labels: Some(Labels::Classes(files.iter().map(|f| f.1).collect())),
        class_names,
        options: options.clone(),
        positional: false,
    })
}

fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut files = vec![];
    for entry in entries {
        let file = entry.map_err(|e| Error::io(folder, e))?.path();
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        if EXTENSIONS.contains(&extension.as_str()) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<DynamicImage> {
    let reader =
        ImageReader::open(file).and_then(|r| r.with_guessed_format()).map_err(|e| Error::io(file, e))?;
    // The library's default limits bound what a hostile image may allocate.
    reader.decode().map_err(|e| Error::data(file, format!("not a readable image ({e})")))
}

fn is_grey(image: &DynamicImage) -> bool {
    !image.color().has_color()
}

fn push_channels_first(image: DynamicImage, [height, width]: [usize; 2], grey: bool, out: &mut Vec<u8>) {
    let same = (image.height() as usize, image.width() as usize) == (height, width);
    let image =
        if same { image } else { image.resize_exact(width as u32, height as u32, FilterType::Triangle) };
    if grey {
        return out.extend(image.into_luma8().into_raw());
    }
    let pixels = image.into_rgb8().into_raw();
    for channel in 0..3 {
        out.extend(pixels.iter().skip(channel).step_by(3));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (class, value) in [("ant", 10u8), ("bee", 20)] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
            let image = RgbImage::from_pixel(4, 2, Rgb([value, value + 1, value + 2]));
            image.save(dir.path().join(class).join("a.png")).unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_is_a_class() {
        let dir = folder();
        let set = super::super::open(dir.path(), &DataOptions::default()).unwrap();
        assert_eq!(set.inputs[0].values.shape(), [2, 3, 2, 4]);
        assert_eq!(set.inputs[0].values.bytes()[24..], [[20u8; 8], [21; 8], [22; 8]].concat());
        assert_eq!(set.labels, Some(Labels::Classes(vec![0, 1])));
        assert_eq!(set.class_names, ["ant", "bee"]);
    }

    #[test]
    fn sizes_are_made_equal_when_asked_for() {
        let dir = folder();
        GrayImage::from_pixel(3, 3, Luma([5])).save(dir.path().join("ant/b.png")).unwrap();
        let message = super::super::open(dir.path(), &DataOptions::default()).err().unwrap();
        assert!(message.to_string().contains("this image is 3×3, others are 2×4"), "{message}");
        let options = DataOptions { size: Some([5, 5]), ..Default::default() };
        assert_eq!(super::super::open(dir.path(), &options).unwrap().inputs[0].values.shape(), [3, 3, 5, 5]);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = folder();
        std::fs::write(dir.path().join("bee/z.png"), b"nope").unwrap();
        let message = super::super::open(dir.path(), &DataOptions::default()).err().unwrap().to_string();
        assert!(message.contains("z.png: not a readable image"), "{message}");
    }
}
