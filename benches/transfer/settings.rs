//! What is measured: from which task and network into which, and by which runs of the program.

use super::networks::{Block, Cell, Made, Network};

/// Which part of the claim a setting tests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Structure,
    Modality,
    Task,
    Itself,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Structure => "across structures",
            Kind::Modality => "across modalities",
            Kind::Task => "across tasks",
            Kind::Itself => "self-transfer",
        }
    }
}

/// A task and the network that learns it.
pub type Side = (&'static str, Network);

pub struct Setting {
    pub name: &'static str,
    pub kind: Kind,
    /// Not used where the target is its own source.
    pub source: Side,
    pub target: Side,
    /// Labelled rows that the target has. The source is trained on the others, where the task is the same; on all, where the
    /// target has all.
    pub labels: usize,
}

const LARGE: Network = Network::Convolutions { channels: &[16, 32, 32], hidden: 64 };
const SMALL: Network = Network::Convolutions { channels: &[8, 16], hidden: 32 };
const DEEP: Network = Network::Dense { hidden: &[128, 96, 64] };
const SHALLOW: Network = Network::Dense { hidden: &[48, 32] };

const RESIDUAL: Network = Network::Residual { width: 16, blocks: 2, block: Block::Plain };
const SMALL_RESIDUAL: Network = Network::Residual { width: 8, blocks: 1, block: Block::Plain };
const INVERTED: Network = Network::Residual { width: 8, blocks: 1, block: Block::Inverted };

const TRANSFORMER: Network = Network::Transformer { width: 48, heads: 4, blocks: 3 };
const SMALL_TRANSFORMER: Network = Network::Transformer { width: 24, heads: 2, blocks: 2 };
const DEEP_TRANSFORMER: Network = Network::Transformer { width: 48, heads: 4, blocks: 6 };

const LSTM: Network = Network::Recurrent { cell: Cell::Lstm, hidden: &[64] };
const SMALL_LSTM: Network = Network::Recurrent { cell: Cell::Lstm, hidden: &[24] };
const GRU: Network = Network::Recurrent { cell: Cell::Gru, hidden: &[48, 48] };
const SMALL_GRU: Network = Network::Recurrent { cell: Cell::Gru, hidden: &[24] };

const HOURGLASS: Network = Network::Hourglass { outer: 24, inner: 32 };
const SMALL_HOURGLASS: Network = Network::Hourglass { outer: 6, inner: 12 };

const fn made(file: &'static str, mean: &'static str, std: &'static str) -> Network {
    Network::File(Made { file, mean, std })
}
const PYTORCH_CNN: Network = made("onnxruntime__cnn_mnist_pytorch.onnx", "0.1307", "0.3081");
const DJL_CNN: Network = made("DJL2OnnxExample__mnist_615120.onnx", "0.1307", "0.3081");
const ESP_MLP: Network = made("esp-dl__mnist_model_example.onnx", "0", "1");
const RTEN_CNN: Network = made("mnist_rten.onnx", "0.1307", "0.3081");
const MLIR_CNN: Network = made("onnx-mlir__mnist.onnx", "0.1307", "0.3081");
const MAXPOOL_CNN: Network = made("mnist_convnet_maxpool.onnx", "0", "1");
const RESNET20: Network = made("onnc__resnet20.onnx", "0.4914,0.4822,0.4465", "0.225");
const DEEP_KW: Network = made("cifar_deep_kw.onnx", "0.485,0.456,0.406", "0.229,0.224,0.225");
const VIT: Network =
    made("vnncomp2023_benchmarks__ibp_3_3_8.onnx", "0.4914,0.4822,0.4465", "0.2023,0.1994,0.2010");

const fn setting(name: &'static str, kind: Kind, source: Side, target: Side, labels: usize) -> Setting {
    Setting { name, kind, source, target, labels }
}

pub const SETTINGS: [Setting; 48] = [
    setting("fixtures", Kind::Structure, ("digits", LARGE), ("digits", SMALL), 100),
    setting("images", Kind::Structure, ("images", LARGE), ("images", SMALL), 100),
    setting("images-20", Kind::Structure, ("images", LARGE), ("images", SMALL), 20),
    setting("images-300", Kind::Structure, ("images", LARGE), ("images", SMALL), 300),
    setting("images-1000", Kind::Structure, ("images", LARGE), ("images", SMALL), 1000),
    setting("images-all", Kind::Structure, ("images", LARGE), ("images", SMALL), usize::MAX),
    setting("photographs", Kind::Structure, ("objects", LARGE), ("objects", SMALL), 300),
    setting("photographs-30", Kind::Structure, ("objects", LARGE), ("objects", SMALL), 30),
    setting("dense", Kind::Structure, ("images", DEEP), ("images", SHALLOW), 100),
    setting("cnn-dense", Kind::Structure, ("images", LARGE), ("images", SHALLOW), 100),
    setting("cnn-dense-20", Kind::Structure, ("images", LARGE), ("images", SHALLOW), 20),
    setting("wider", Kind::Structure, ("images", SMALL), ("images", LARGE), 100),
    setting("residual", Kind::Structure, ("images", RESIDUAL), ("images", SMALL_RESIDUAL), 100),
    setting("residual-20", Kind::Structure, ("images", RESIDUAL), ("images", SMALL_RESIDUAL), 20),
    setting("residual-inverted", Kind::Structure, ("images", RESIDUAL), ("images", INVERTED), 100),
    setting("residual-chain", Kind::Structure, ("images", RESIDUAL), ("images", SMALL), 100),
    setting("words", Kind::Structure, ("reviews", LARGE), ("reviews", SMALL), 300),
    setting("words-30", Kind::Structure, ("reviews", LARGE), ("reviews", SMALL), 30),
    setting("recurrent", Kind::Structure, ("images", LSTM), ("images", SMALL_LSTM), 100),
    setting("recurrent-20", Kind::Structure, ("images", LSTM), ("images", SMALL_LSTM), 20),
    setting("recurrent-words", Kind::Structure, ("reviews", LSTM), ("reviews", SMALL_LSTM), 300),
    setting("recurrent-speech", Kind::Structure, ("speech", GRU), ("speech", SMALL_GRU), 300),
    setting("transformer", Kind::Structure, ("digits", TRANSFORMER), ("digits", SMALL_TRANSFORMER), 100),
    setting(
        "transformer-words",
        Kind::Structure,
        ("reviews", TRANSFORMER),
        ("reviews", SMALL_TRANSFORMER),
        300,
    ),
    setting("transformer-depth", Kind::Structure, ("digits", DEEP_TRANSFORMER), ("digits", TRANSFORMER), 100),
    setting("transformer-cnn", Kind::Structure, ("digits", TRANSFORMER), ("digits", SMALL), 100),
    setting("cnn-transformer", Kind::Structure, ("digits", LARGE), ("digits", SMALL_TRANSFORMER), 100),
    setting("table", Kind::Structure, ("housing", DEEP), ("housing", SHALLOW), 100),
    setting("table-30", Kind::Structure, ("housing", DEEP), ("housing", SHALLOW), 30),
    setting("denoise", Kind::Structure, ("clean", HOURGLASS), ("clean", SMALL_HOURGLASS), 100),
    setting("others-rten", Kind::Structure, ("mnist", PYTORCH_CNN), ("mnist", RTEN_CNN), 100),
    setting("others-mlir", Kind::Structure, ("mnist", DJL_CNN), ("mnist", MLIR_CNN), 100),
    setting("others-maxpool", Kind::Structure, ("mnist", PYTORCH_CNN), ("mnist", MAXPOOL_CNN), 300),
    setting("others-kw", Kind::Structure, ("cifar", RESNET20), ("cifar", DEEP_KW), 300),
    setting("others-vit", Kind::Structure, ("cifar", RESNET20), ("cifar", VIT), 300),
    setting("others-fresh", Kind::Structure, ("cifar", RESNET20), ("cifar", SMALL), 300),
    setting("others-dense", Kind::Structure, ("mnist", ESP_MLP), ("mnist", SHALLOW), 100),
    setting("image-speech", Kind::Modality, ("images", LARGE), ("speech", SMALL), 300),
    setting("speech-image", Kind::Modality, ("speech", LARGE), ("images", SMALL), 100),
    setting("picture-edges", Kind::Modality, ("images", LARGE), ("edges", SMALL), 100),
    setting("spectrogram-bands", Kind::Modality, ("speech", LARGE), ("bands", SHALLOW), 300),
    setting("class-parity", Kind::Task, ("images", LARGE), ("parity", SMALL), 100),
    setting("class-value", Kind::Task, ("images", LARGE), ("value", SMALL), 100),
    setting("self-images", Kind::Itself, ("images", LARGE), ("images", LARGE), 300),
    setting("self-speech", Kind::Itself, ("speech", LARGE), ("speech", LARGE), 300),
    setting("self-words", Kind::Itself, ("reviews", LARGE), ("reviews", LARGE), 300),
    setting("self-photographs", Kind::Itself, ("objects", LARGE), ("objects", LARGE), 300),
    setting("self-table", Kind::Itself, ("housing", DEEP), ("housing", DEEP), 1000),
];

/// A call of the program, and what its result is called.
pub struct Run {
    pub name: &'static str,
    pub start: Start,
    pub args: &'static [&'static str],
    /// Whether the arms of the report count by their own names, or what was shipped as one arm of the run's name.
    pub arms: bool,
}

/// What is trained.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Source and target.
    Pair,
    /// The same, where the source reads the target's data.
    Shown,
    /// The same, where it also answers for the target.
    Taught,
    /// Source and target, the source trained beside the target on its own rows.
    Joint,
    /// The target alone.
    Target,
    /// The target after an even selection of the source's weights (arXiv 2311.18823), alone.
    Selected,
    /// The target with the layers of its own architecture trained on the source's task, alone: what there is to transfer.
    Headroom,
}

const fn run(name: &'static str, start: Start, args: &'static [&'static str], arms: bool) -> Run {
    Run { name, start, args, arms }
}

pub const RUNS: [Run; 16] = [
    run("fitted", Start::Shown, &["--method", "lpka", "--start", "fitted", "--ablate"], true),
    run("fitted+kd", Start::Taught, &["--method", "lpka+kd", "--start", "fitted", "--ablate"], true),
    run("mapped", Start::Pair, &["--method", "lpka", "--gate", "1", "--ablate"], true),
    run("closed", Start::Pair, &["--method", "lpka", "--gate", "0", "--ablate"], true),
    run("auto", Start::Pair, &[], false),
    run("uncut", Start::Taught, &["--method", "lpka+kd", "--start", "fitted", "--made-rows", "0"], false),
    run("features", Start::Shown, &["--method", "features"], false),
    run("features+kd", Start::Taught, &["--method", "features+kd"], false),
    run("features+kd fitted", Start::Taught, &["--method", "features+kd", "--start", "fitted"], false),
    run("low-rank", Start::Target, &["--low-rank", "4"], false),
    run("selection", Start::Selected, &[], false),
    run("headroom", Start::Headroom, &[], false),
    // The reference implementation's own experiment: one layer, overwritten, by an adapter that trains beside both models.
    run(
        "reference",
        Start::Joint,
        &["--method", "lpka", "--preset", "paper", "--adapt", "head.weight"],
        false,
    ),
    run("joint", Start::Joint, &[], false),
    run("residual", Start::Pair, &["--method", "lpka", "--preset", "residual", "--ablate"], true),
    run("paper", Start::Pair, &["--method", "lpka", "--preset", "paper", "--ablate"], true),
];
