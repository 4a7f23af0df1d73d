//! Folders of pictures as people have them.

use crate::merge::report;
use crate::transcript::Sandbox;
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use onnx_merge::onnx::{Builder, DType, Fact, Model, Tensor, WORKING_OPSET};

/// Answers with the mean of all pixels, and with `middle`: class 0 is bright, class 1 is dark.
fn brightness(channels: usize, middle: f32) -> Model {
    let mut b = Builder::new("brightness");
    let x = b.input("x", Fact::new(DType::F32, &[1, channels, 8, 8]));
    let count = channels * 64;
    let flat = b.op("Flatten", &[&x]);
    let weights: Vec<f32> = (0..count).flat_map(|_| [1.0 / count as f32, 0.0]).collect();
    let w = b.initializer("w", Tensor::f32(&[count, 2], &weights));
    let bias = b.initializer("b", Tensor::f32(&[2], &[0.0, middle]));
    let y = b.matmul(&flat, &w);
    let y = b.add(&y, &bias);
    b.output_as("y", &y);
    Model::new(b.finish().0, WORKING_OPSET)
}

/// Eight pictures of each class: most are RGB, some grey, one has an invisible half.
fn folder(sandbox: &Sandbox, name: &str) {
    for (class, value) in [("a_bright", 200), ("b_dark", 20)] {
        let folder = sandbox.path(name).join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..8u8 {
            let value = value + i;
            let picture: DynamicImage = match i {
                0 => RgbaImage::from_pixel(8, 8, Rgba([value, value, value, 0])).into(),
                1 | 2 => GrayImage::from_pixel(8, 8, Luma([value])).into(),
                _ => RgbImage::from_pixel(8, 8, Rgb([value, value, value])).into(),
            };
            picture.save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn pictures_get_the_channels_that_each_model_takes() {
    let sandbox =
        Sandbox::new().model("grey.onnx", &brightness(1, 100.0)).model("rgb.onnx", &brightness(3, 100.0));
    folder(&sandbox, "photos");
    sandbox.transcript(
        "$ onnx-merge eval rgb.onnx --data photos --executor tract
         note: pictures were converted: 4 of 16 from grey to RGB (its channel three times), 2 of 16 by dropping the alpha channel
         note: the classes are numbered in the order of their names: 0 'a_bright', 1 'b_dark'
         rgb.onnx: accuracy 100.00 %, [..]
         $ onnx-merge eval grey.onnx --data photos --executor tract
         note: pictures were converted: 12 of 16 from RGB to grey (luma), 2 of 16 by dropping the alpha channel
         ...
         grey.onnx: accuracy 100.00 %, [..]
         $ onnx-merge rgb.onnx grey.onnx -o out.onnx --data photos --executor tract --steps 2 --lr 0
         ...
         note: for the source, pictures were converted: 4 of 16 from grey to RGB (its channel three times), 2 of 16 by dropping \
         the alpha channel
         ...
         note: pictures were converted: 12 of 16 from RGB to grey (luma), 2 of 16 by dropping the alpha channel
         ...
         [exit 4]",
    );
    let report = report(
        &sandbox,
        "tune grey.onnx -o out.onnx --data photos --val photos --executor tract --steps 2 --lr 0",
        4,
    );
    assert_eq!(report.untouched.val, Some(1.0));
}
