//! Image folders: one folder a class, images inside.

use super::labels::Labels;
use super::options::DataOptions;
use super::pictures::Pictures;
use super::{Column, Dataset, Form, check_memory, file_name, subfolders};
use crate::error::{Error, Result};
use crate::onnx::{DType, Tensor};
use image::imageops::FilterType;
use image::{DynamicImage, GenericImageView, ImageDecoder, ImageError, ImageReader};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "bmp", "gif", "webp"];

/// Opens a folder of folders: class `i` is the `i`-th folder by name. Pixels are kept as bytes, channels
/// first; the images are grey where all are, else RGB. Their alpha is dropped.
pub fn open(path: &Path, options: &DataOptions) -> Result<Dataset> {
    let mut files = vec![];
    let mut class_names = vec![];
    for (class, folder) in subfolders(path)?.into_iter().enumerate() {
        class_names.push(file_name(&folder));
        files.extend(images_in(&folder)?.into_iter().map(|f| (f, class as i64)));
    }
    let headers = files.iter().map(|(file, _)| Header::read(file)).collect::<Result<Vec<_>>>()?;
    let Some(first) = headers.first() else {
        return Err(Error::data(path, "there are no images in its folders"));
    };
    let size = options.size.unwrap_or(first.size);
    if options.size.is_none()
        && let Some(i) = headers.iter().position(|header| header.size != size)
    {
        let ([h, w], [height, width]) = (headers[i].size, size);
        let what = format!("this image is {h}×{w}, others are {height}×{width}");
        return Err(Error::data(&files[i].0, what).hint("resize them all with --size HEIGHTxWIDTH"));
    }
    let grey = headers.iter().filter(|header| header.grey).count();
    let mut pictures = Pictures { all: files.len(), grey, transparent: 0 };
    let shape = [files.len(), pictures.channels(), size[0], size[1]];
    let total = crate::onnx::element_count(&shape).ok_or_else(|| Error::data(path, "too many pixels"))?;
    check_memory(path, "the images", total as u64)?;
    let mut pixels = Vec::with_capacity(total);
    for (file, _) in &files {
        let image = read(file)?;
        pictures.transparent += usize::from(is_transparent(&image));
        push_channels_first(image, size, pictures.channels(), &mut pixels);
    }
    let values = Tensor::new(DType::U8, &shape, pixels)?;
    Ok(Dataset {
        path: path.to_owned(),
        inputs: vec![Column { name: "x".into(), values }],
        labels: Some(Labels::Classes(files.iter().map(|f| f.1).collect())),
        class_names,
        groups: None,
        options: options.clone(),
        form: Form::Pictures(pictures),
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

/// What a file says of its image before any pixel.
struct Header {
    /// Height and width.
    size: [usize; 2],
    grey: bool,
}

impl Header {
    fn read(file: &Path) -> Result<Self> {
        let decoder = reader(file)?.into_decoder().map_err(|e| unreadable(file, e))?;
        let (width, height) = decoder.dimensions();
        Ok(Self { size: [height as usize, width as usize], grey: !decoder.color_type().has_color() })
    }
}

fn read(file: &Path) -> Result<DynamicImage> {
    // The library's default limits bound what a hostile image may allocate.
    reader(file)?.decode().map_err(|e| unreadable(file, e))
}

fn reader(file: &Path) -> Result<ImageReader<BufReader<File>>> {
    ImageReader::open(file).and_then(|r| r.with_guessed_format()).map_err(|e| Error::io(file, e))
}

fn unreadable(file: &Path, error: ImageError) -> Error {
    Error::data(file, format!("not a readable image ({error})"))
}

fn is_transparent(image: &DynamicImage) -> bool {
    image.color().has_alpha() && image.pixels().any(|(_, _, pixel)| pixel[3] < u8::MAX)
}

fn push_channels_first(image: DynamicImage, [height, width]: [usize; 2], channels: usize, out: &mut Vec<u8>) {
    let same = (image.height() as usize, image.width() as usize) == (height, width);
    let image =
        if same { image } else { image.resize_exact(width as u32, height as u32, FilterType::Triangle) };
    if channels == 1 {
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
    use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};

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
    fn grey_images_among_coloured_ones_become_rgb_and_lose_their_alpha() {
        let dir = folder();
        // Behind more grey ones than anybody would look at first.
        for i in 0..20 {
            GrayImage::from_pixel(4, 2, Luma([7])).save(dir.path().join(format!("ant/0{i:02}.png"))).unwrap();
        }
        RgbaImage::from_pixel(4, 2, Rgba([1, 2, 3, 0])).save(dir.path().join("bee/b.png")).unwrap();
        let set = super::super::open(dir.path(), &DataOptions::default()).unwrap();
        assert_eq!(set.form, Form::Pictures(Pictures { all: 23, grey: 20, transparent: 1 }));
        let bytes = set.inputs[0].values.bytes();
        assert_eq!(
            (&bytes[..24], &bytes[22 * 24..]),
            (&[7; 24][..], &[[1u8; 8], [2; 8], [3; 8]].concat()[..])
        );
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = folder();
        std::fs::write(dir.path().join("bee/z.png"), b"nope").unwrap();
        let message = super::super::open(dir.path(), &DataOptions::default()).err().unwrap().to_string();
        assert!(message.contains("z.png: not a readable image"), "{message}");
    }
}
