//! What is measured: single operators of the sizes that known networks have, as graphs of this program.

use onnx_merge::autodiff;
use onnx_merge::onnx::{Builder, DType, Fact, Facts, Forms, Model, Tensor, ValueId, WORKING_OPSET};
use onnx_merge::train::loss::cross_entropy;
use onnx_merge::{Error, Result};
use serde::Serialize;

/// An operator with its sizes. Serialised, it is what the PyTorch side reads.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Case {
    /// `batch` products of m × k by k × n.
    Product {
        batch: usize,
        m: usize,
        k: usize,
        n: usize,
    },
    Conv {
        #[serde(flatten)]
        conv: Conv,
        pass: Pass,
    },
    /// The same two with operands of float16.
    HalfProduct {
        batch: usize,
        m: usize,
        k: usize,
        n: usize,
    },
    HalfConv {
        #[serde(flatten)]
        conv: Conv,
        pass: Pass,
    },
    /// Along rows of `cols`.
    Softmax {
        rows: usize,
        cols: usize,
        pass: Pass,
    },
    LayerNorm {
        rows: usize,
        cols: usize,
        pass: Pass,
    },
    /// Division by the root of the mean square.
    RmsNorm {
        rows: usize,
        cols: usize,
        pass: Pass,
    },
    /// The gradient of the mean cross-entropy of rows of logits.
    CrossEntropy {
        rows: usize,
        cols: usize,
    },
    /// `x + gelu(y)`, elementwise.
    AddGelu {
        rows: usize,
        cols: usize,
    },
    /// `-x`: what the device moves at best.
    Negate {
        rows: usize,
        cols: usize,
    },
    /// Sums of the rows, or of the columns.
    Sum {
        rows: usize,
        cols: usize,
        axis: usize,
    },
    /// Into memory of the other order.
    Transpose {
        rows: usize,
        cols: usize,
    },
}

/// A convolution of n × c × size × size by o kernels of kernel × kernel, padded by half the kernel.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Conv {
    pub n: usize,
    pub c: usize,
    pub size: usize,
    pub o: usize,
    pub kernel: usize,
    pub stride: usize,
    pub group: usize,
}

/// Which way through an operator.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    Forward,
    /// The gradient of the input from that of the output.
    Input,
    Weight,
}

impl Conv {
    const fn new(n: usize, c: usize, size: usize, o: usize, kernel: usize, stride: usize) -> Self {
        Conv { n, c, size, o, kernel, stride, group: 1 }
    }
    const fn depthwise(n: usize, c: usize, size: usize, kernel: usize, stride: usize) -> Self {
        Conv { n, c, size, o: c, kernel, stride, group: c }
    }
    fn out(&self) -> usize {
        (self.size + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1
    }
    fn flops(&self) -> usize {
        2 * self.n * self.o * self.out().pow(2) * self.c / self.group * self.kernel.pow(2)
    }
}

/// Convolutions of ResNet-50 and of MobileNetV2, at 32 images of 224 × 224; one of them at 256.
const CONVS: &[Conv] = &[
    Conv::new(32, 3, 224, 64, 7, 2),
    Conv::new(32, 64, 56, 64, 3, 1),
    Conv::new(32, 128, 28, 128, 3, 1),
    Conv::new(32, 256, 14, 256, 3, 1),
    Conv::new(32, 512, 7, 512, 3, 1),
    Conv::new(32, 128, 56, 128, 3, 2),
    Conv::new(32, 256, 56, 64, 1, 1),
    Conv::new(32, 1024, 14, 256, 1, 1),
    Conv::depthwise(32, 96, 112, 3, 2),
    Conv::depthwise(32, 192, 28, 3, 1),
    Conv::depthwise(256, 192, 28, 3, 1),
    Conv::new(32, 32, 28, 192, 1, 1),
];

/// Multiplications from which products are rounded (docs/gpu.md), if they are; of convolutions, those of kernels of one element.
const LARGE: usize = 100_000_000;

/// batch, m, k, n. The last four are a transformer's: projections of 32 × 128 tokens, attention's scores and sums over 8 heads.
const PRODUCTS: &[[usize; 4]] = &[
    [1, 256, 256, 256],
    [1, 512, 512, 512],
    [1, 1024, 1024, 1024],
    [1, 2048, 2048, 2048],
    [1, 4096, 4096, 4096],
    [1, 8192, 8192, 8192],
    [1, 4096, 512, 2048],
    [256, 128, 64, 128],
    [256, 128, 128, 64],
    [1, 64, 4096, 64],
];

/// Every case, in the order of the table.
pub fn all() -> Vec<Case> {
    let mut cases = vec![];
    cases.extend(PRODUCTS.iter().map(|&[batch, m, k, n]| Case::Product { batch, m, k, n }));
    let large = PRODUCTS.iter().filter(|sizes| sizes.iter().product::<usize>() >= LARGE);
    cases.extend(large.map(|&[batch, m, k, n]| Case::HalfProduct { batch, m, k, n }));
    let passes = [Pass::Forward, Pass::Input, Pass::Weight];
    for conv in CONVS {
        cases.extend(passes.map(|pass| Case::Conv { conv: *conv, pass }));
    }
    for conv in CONVS.iter().filter(|conv| conv.kernel == 1) {
        cases.extend(passes.map(|pass| Case::HalfConv { conv: *conv, pass }));
    }
    for rows in SHORT_AND_LONG {
        cases.extend(memory_bound(rows));
    }
    cases
}

/// Rows of 1024 elements: 64 MiB, where starting a kernel and its end are a good part of its time, and 512 MiB, where they aren't.
const SHORT_AND_LONG: [usize; 2] = [16384, 131_072];

fn memory_bound(rows: usize) -> [Case; 15] {
    let cols = 1024;
    let elements = rows * cols;
    [
        Case::Softmax { rows, cols, pass: Pass::Forward },
        Case::Softmax { rows, cols, pass: Pass::Input },
        Case::LayerNorm { rows, cols, pass: Pass::Forward },
        Case::LayerNorm { rows, cols, pass: Pass::Input },
        Case::LayerNorm { rows, cols, pass: Pass::Weight },
        Case::RmsNorm { rows, cols, pass: Pass::Forward },
        Case::RmsNorm { rows, cols, pass: Pass::Input },
        Case::CrossEntropy { rows, cols },
        Case::AddGelu { rows, cols },
        Case::Negate { rows, cols },
        Case::Sum { rows, cols, axis: 1 },
        Case::Sum { rows, cols, axis: 0 },
        Case::Sum { rows: elements / 64, cols: 64, axis: 0 },
        Case::Sum { rows: elements / 65_536, cols: 65_536, axis: 0 },
        Case::Transpose { rows, cols },
    ]
}

impl Case {
    /// Whether it is one of float16.
    pub fn is_half(&self) -> bool {
        matches!(self, Case::HalfProduct { .. } | Case::HalfConv { .. })
    }
    /// For people, and to choose by.
    pub fn name(&self) -> String {
        let way = |pass: Pass| match pass {
            Pass::Forward => "",
            Pass::Input => ", input gradient",
            Pass::Weight => ", weight gradient",
        };
        match *self {
            Case::HalfProduct { batch, m, k, n } => {
                format!("{}, f16", Case::Product { batch, m, k, n }.name())
            }
            Case::HalfConv { conv, pass } => format!("{}, f16", Case::Conv { conv, pass }.name()),
            Case::Product { batch: 1, m, k, n } => format!("product {m}×{k}×{n}"),
            Case::Product { batch, m, k, n } => format!("product {batch} of {m}×{k}×{n}"),
            Case::Conv { conv: c, pass } => {
                let kind = if c.group > 1 { "depthwise" } else { "conv" };
                let (n, size, k, stride) = (c.n, c.size, c.kernel, c.stride);
                format!("{kind} {n}×{}×{size}² → {}, {k}×{k}/{stride}{}", c.c, c.o, way(pass))
            }
            Case::Softmax { rows, cols, pass } => format!("softmax {rows}×{cols}{}", way(pass)),
            Case::LayerNorm { rows, cols, pass } => format!("layer norm {rows}×{cols}{}", way(pass)),
            Case::RmsNorm { rows, cols, pass } => format!("RMS norm {rows}×{cols}{}", way(pass)),
            Case::CrossEntropy { rows, cols } => format!("cross-entropy {rows}×{cols}, gradient"),
            Case::AddGelu { rows, cols } => format!("add, GELU {rows}×{cols}"),
            Case::Negate { rows, cols } => format!("negation {rows}×{cols}"),
            Case::Sum { rows, cols, axis: 1 } => format!("row sums {rows}×{cols}"),
            Case::Sum { rows, cols, .. } => format!("column sums {rows}×{cols}"),
            Case::Transpose { rows, cols } => format!("transpose {rows}×{cols}"),
        }
    }
    /// What the work comes to: floating-point operations where arithmetic bounds it, else bytes that must move at
    /// least.
    pub fn work(&self) -> Work {
        let moved =
            |tensors: usize, rows: usize, cols: usize| Work::Bytes((tensors * rows * cols * 4) as f64);
        match *self {
            Case::Product { batch, m, k, n } | Case::HalfProduct { batch, m, k, n } => {
                Work::Operations((2 * batch * m * k * n) as f64)
            }
            // A multiplication for every element of the kernel: memory bounds these.
            Case::Conv { conv: c, .. } if c.group == c.c => {
                moved(1, c.n * c.c, c.size.pow(2) + c.out().pow(2))
            }
            Case::Conv { conv, .. } | Case::HalfConv { conv, .. } => Work::Operations(conv.flops() as f64),
            Case::Softmax { rows, cols, pass }
            | Case::LayerNorm { rows, cols, pass }
            | Case::RmsNorm { rows, cols, pass } => {
                moved(if pass == Pass::Input { 3 } else { 2 }, rows, cols)
            }
            Case::CrossEntropy { rows, cols } => moved(2, rows, cols),
            Case::AddGelu { rows, cols } => moved(3, rows, cols),
            Case::Negate { rows, cols } => moved(2, rows, cols),
            Case::Sum { rows, cols, .. } => moved(1, rows, cols),
            Case::Transpose { rows, cols } => moved(2, rows, cols),
        }
    }
    /// The case as a graph; its inputs are in the order of the graph.
    pub fn graph(&self) -> Result<(Model, Facts)> {
        let mut b = Builder::new("case");
        b.forms = Forms::Windows;
        let input =
            |b: &mut Builder, name: &str, shape: &[usize]| b.input(name, Fact::new(DType::F32, shape));
        let output = match *self {
            Case::Product { batch, m, k, n } | Case::HalfProduct { batch, m, k, n } => {
                let lead: &[usize] = if batch == 1 { &[] } else { &[batch] };
                let x = input(&mut b, "a", &[lead, &[m, k]].concat());
                let y = input(&mut b, "b", &[lead, &[k, n]].concat());
                b.matmul(&x, &y)
            }
            Case::Conv { conv, pass } | Case::HalfConv { conv, pass } => {
                let x = input(&mut b, "x", &[conv.n, conv.c, conv.size, conv.size]);
                let w = input(&mut b, "w", &[conv.o, conv.c / conv.group, conv.kernel, conv.kernel]);
                let pad = (conv.kernel / 2) as i64;
                let ints = |v: usize| vec![v as i64; 2].into();
                let y = b.op_with(
                    "Conv",
                    &[&x, &w],
                    &[
                        ("strides", ints(conv.stride)),
                        ("pads", vec![pad; 4].into()),
                        ("kernel_shape", ints(conv.kernel)),
                        ("group", (conv.group as i64).into()),
                    ],
                );
                through(&mut b, y, &x, &w, pass)?
            }
            Case::Softmax { rows, cols, pass } => {
                let x = input(&mut b, "x", &[rows, cols]);
                let y = b.softmax(&x, -1);
                through(&mut b, y, &x, &x, pass)?
            }
            Case::LayerNorm { rows, cols, pass } => {
                let x = input(&mut b, "x", &[rows, cols]);
                let scale = input(&mut b, "scale", &[cols]);
                let bias = input(&mut b, "bias", &[cols]);
                let y = b.op("LayerNormalization", &[&x, &scale, &bias]);
                through(&mut b, y, &x, &scale, pass)?
            }
            Case::RmsNorm { rows, cols, pass } => {
                let x = input(&mut b, "x", &[rows, cols]);
                let scale = input(&mut b, "scale", &[cols]);
                let y = b.op("RMSNormalization", &[&x, &scale]);
                b.set_fact(&y, Fact::new(DType::F32, &[rows, cols]));
                through(&mut b, y, &x, &scale, pass)?
            }
            Case::CrossEntropy { rows, cols } => {
                let x = input(&mut b, "x", &[rows, cols]);
                let labels: Vec<i64> = (0..rows).map(|i| (i * 7919 % cols) as i64).collect();
                let labels = b.constant(Tensor::i64(&[rows], &labels));
                let loss = cross_entropy(&mut b, &x, &labels, None);
                through(&mut b, loss, &x, &x, Pass::Input)?
            }
            Case::AddGelu { rows, cols } => {
                let x = input(&mut b, "x", &[rows, cols]);
                let y = input(&mut b, "y", &[rows, cols]);
                let g = b.op("Gelu", &[&y]);
                b.add(&x, &g)
            }
            Case::Negate { rows, cols } => {
                let x = input(&mut b, "x", &[rows, cols]);
                b.op("Neg", &[&x])
            }
            Case::Sum { rows, cols, axis } => {
                let x = input(&mut b, "x", &[rows, cols]);
                b.sum(&x, &[axis as i64], false)
            }
            Case::Transpose { rows, cols } => {
                let x = input(&mut b, "x", &[rows, cols]);
                b.transpose(&x, &[1, 0])
            }
        };
        b.output(&output);
        let (mut graph, facts) = b.finish();
        graph.prune();
        let (graph, facts) = autodiff::lower::lower(graph, facts)?;
        Ok((Model::new(graph, WORKING_OPSET), facts))
    }
}

/// `y` itself, or the cotangent of its input or weight for a given one of its own.
fn through(b: &mut Builder, y: ValueId, x: &ValueId, w: &ValueId, pass: Pass) -> Result<ValueId> {
    let of = match pass {
        Pass::Forward => return Ok(y),
        Pass::Input => x,
        Pass::Weight => w,
    };
    let seed = b.input("cotangent", Fact::new(DType::F32, &b.shape(&y)));
    let mut found = autodiff::backward(b, &[(y, seed)], std::slice::from_ref(of))?;
    found.remove(of).ok_or_else(|| Error::tensor(of.as_str(), "has no gradient"))
}

/// How much a case is.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    Operations(f64),
    Bytes(f64),
}

impl Work {
    /// In TFLOP/s or GB/s.
    pub fn rate(self, seconds: f64) -> String {
        match self {
            Work::Operations(n) => format!("{:.2} TFLOP/s", n / seconds / 1e12),
            Work::Bytes(n) => format!("{:.0} GB/s", n / seconds / 1e9),
        }
    }
}
