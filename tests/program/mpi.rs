//! Training in several processes, started by the real `mpirun`.

use crate::transcript::Sandbox;

/// What launchers say in the environment is enough to see what commands do that several processes can't.
#[test]
fn commands_that_share_nothing_out_are_refused_in_several_processes() {
    Sandbox::digits().transcript(
        "$ OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 onnx-merge eval digits_mlp.onnx --data digits_val.npz
         error: only training is shared out over processes: start this command without mpirun
         [exit 2]
         $ OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 onnx-merge eval digits_mlp.onnx --data digits_val.npz
         [exit 2]
         $ OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 onnx-merge --no-such-option
         [exit 2]",
    );
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_refuses_to_be_one_of_several() {
    Sandbox::digits().transcript(
        "$ OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 onnx-merge tune digits_mlp.onnx -o out.onnx --data digits_val.npz
         error: this is one of 4 processes, but this build trains in one: each would train alone
         hint: start it without mpirun, or build it with `cargo build --release --features mpi` [..]
         [exit 2]
         $ PMI_RANK=3 PMI_SIZE=4 onnx-merge tune digits_mlp.onnx -o out.onnx --data digits_val.npz
         [exit 2]
         $ missing out.onnx",
    );
}

#[cfg(all(feature = "mpi", target_os = "linux"))]
mod together {
    use super::Sandbox;
    use onnx_merge::report::{Outcome, Report};
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    const DATA: &str = "--data digits_train100.npz --val digits_val.npz --executor tract";

    /// Whether there is an `mpirun` whose options are known; says so where there is none.
    fn launcher_is_here() -> bool {
        let version = Command::new("mpirun").arg("--version").output();
        let is_open_mpi = version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).contains("Open MPI"));
        if !is_open_mpi {
            eprintln!("skipped: no mpirun of Open MPI is here (tests/run installs one where apt is)");
        }
        is_open_mpi
    }

    /// The program in several processes; a `:` among the arguments begins those of the next ones, for which `ranks` has another
    /// number.
    fn mpirun(sandbox: &Sandbox, ranks: &[usize], arguments: &str) -> Command {
        let mut command = Command::new("mpirun");
        command.args(["--oversubscribe", "--bind-to", "none"]);
        for (i, (ranks, arguments)) in ranks.iter().zip(arguments.split(" : ")).enumerate() {
            command.args([":"].iter().take(i)).args(["-n", &ranks.to_string()]);
            command.arg(env!("CARGO_BIN_EXE_onnx-merge")).args(arguments.split_whitespace());
        }
        // Containers are often root, and may not look into each other's memory; and whoever waits here keeps others from
        // what is waited for.
        command.envs([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
            ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ]);
        command.current_dir(sandbox.path(".")).env_remove("ORT_DYLIB_PATH").env("NO_COLOR", "1");
        command
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn report(output: &Output) -> Report {
        let said = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 4)), "{:?}\n{said}", output.status);
        // One object: only one process has written.
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{said}"))
    }

    /// Every step in a log: arm and step, and the loss.
    fn losses(sandbox: &Sandbox, log: &str) -> Vec<(String, f64)> {
        let lines = std::fs::read_to_string(sandbox.path(log)).expect("a log");
        let lines = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"));
        let steps = lines.filter(|l| l["event"] == "step");
        steps.map(|l| (format!("{} {}", l["arm"], l["step"]), l["loss"].as_f64().expect("a loss"))).collect()
    }

    /// One process with as many threads as there are ranks cuts a batch as they do; then the same, over the ranks.
    fn same_with(sandbox: &Sandbox, ranks: usize, arguments: &str) {
        let shared = format!("{arguments} {DATA} --json");
        let one = format!("{shared} -o one.onnx --log one.jsonl --threads {ranks}");
        let words: Vec<String> = one.split_whitespace().map(str::to_owned).collect();
        let one = report(&sandbox.program(&words).output().unwrap());
        let many = format!("{shared} -o many.onnx --log many.jsonl --threads 1");
        let many = report(&mpirun(sandbox, &[ranks], &many).output().unwrap());
        let (alone, together) = (losses(sandbox, "one.jsonl"), losses(sandbox, "many.jsonl"));
        assert!(alone.len() >= 30 && alone.len() == together.len(), "{} {}", alone.len(), together.len());
        for ((step, alone), (its, together)) in alone.iter().zip(&together) {
            let apart = (alone - together).abs() / alone.abs();
            assert!(
                step == its && apart < 1e-4,
                "{arguments}, {ranks} ranks, {step}: {alone} and {together}"
            );
        }
        let (alone, together) = (one.shipped.val.unwrap(), many.shipped.val.unwrap());
        assert!((alone - together).abs() < 0.005, "{arguments}, {ranks} ranks: {alone} and {together}");
        assert!(together >= one.untouched.val.unwrap(), "{arguments}");
        assert!(many.notes.iter().any(|n| n.starts_with(&format!("{ranks} processes share"))));
    }

    #[test]
    fn several_processes_train_as_one_does() {
        if !launcher_is_here() {
            return;
        }
        let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
        // The learning rate is chosen, too.
        same_with(&sandbox, 2, "tune digits_mlp.onnx --steps 96");
        same_with(&sandbox, 4, "tune digits_small_cnn.onnx --steps 40 --lr 0.003");
        // Shares of different sizes, and ranks without rows.
        same_with(&sandbox, 4, "tune digits_mlp.onnx --steps 40 --lr 0.003 --batch 10");
        same_with(&sandbox, 4, "tune digits_mlp.onnx --steps 40 --lr 0.003 --batch 3");
        // Labels that don't count, more of them in some shares than in others.
        same_with(&sandbox, 4, "tune digits_mlp.onnx --steps 40 --lr 0.003 --batch 10 --ignore-label 7");
        // Rows have their own random numbers, whoever takes them.
        let model = crate::train_dropout::dropping(&sandbox);
        let sandbox = sandbox.model("drop.onnx", &model);
        same_with(&sandbox, 2, "tune drop.onnx --steps 40 --lr 0.003 --batch 10 --train-dropout");
        // The adapter, from a fit, with rows without labels and distillation.
        let transfer =
            "digits_cnn.onnx digits_small_cnn.onnx --method lpka+kd --start fitted --steps 40 --lr 0.003";
        same_with(&sandbox, 2, transfer);
        same_with(&sandbox, 4, &format!("{transfer} --align 0"));
        let joint = "digits_cnn.onnx digits_mlp.onnx --joint --method lpka --gate 0.5 --steps 40 --lr 0.003 --cycle 10";
        same_with(&sandbox, 2, joint);
    }

    #[test]
    fn only_the_first_process_talks_and_writes() {
        if !launcher_is_here() {
            return;
        }
        let sandbox = Sandbox::digits();
        let before = names(&sandbox);
        let tune = format!("tune digits_mlp.onnx -o out.onnx {DATA} --steps 20 --lr 0.003 --report out.html");
        let output = mpirun(&sandbox, &[3], &tune).output().unwrap();
        let (said, shown) = (text(&output.stderr), text(&output.stdout));
        assert!(matches!(output.status.code(), Some(0 | 4)), "{said}");
        assert_eq!(
            said.matches("note: 3 processes share the 64 rows of each step: 21 or 22 for each").count(),
            1
        );
        assert_eq!(
            (said.matches("training finetune").count(), shown.matches("shipped (finetune)").count()),
            (1, 1)
        );
        let new: Vec<String> = names(&sandbox).into_iter().filter(|n| !before.contains(n)).collect();
        assert_eq!(new, ["merge.toml", "out.html", "out.onnx"]);
    }

    fn names(sandbox: &Sandbox) -> Vec<String> {
        let folder = std::fs::read_dir(sandbox.path(".")).unwrap();
        let mut names: Vec<String> =
            folder.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_error_of_all_is_told_once_and_one_of_a_rank_with_its_number() {
        if !launcher_is_here() {
            return;
        }
        let sandbox = Sandbox::digits();
        let errors = |ranks: &[usize], arguments: &str| -> (Vec<String>, Option<i32>) {
            let output = mpirun(&sandbox, ranks, arguments).output().unwrap();
            let said = text(&output.stderr);
            let errors = said.lines().filter(|l| l.starts_with("error:")).map(str::to_owned).collect();
            (errors, output.status.code())
        };
        let tune = format!("tune digits_mlp.onnx -o out.onnx {DATA} --steps 20 --lr 0.003");
        let (told, code) = errors(&[3], &tune.replace("digits_mlp", "missing"));
        assert!(told.len() == 1 && !told[0].contains("rank") && told[0].contains("missing.onnx"), "{told:?}");
        assert_eq!(code, Some(3));
        let (told, code) = errors(&[2], &format!("{tune} --train-bn"));
        assert!(told.len() == 1 && told[0].starts_with("error: --train-bn needs the rows"), "{told:?}");
        assert_eq!(code, Some(2));

        let (told, code) = errors(&[2, 1], &format!("{tune} : {}", tune.replace("digits_mlp", "missing")));
        assert!(told.len() == 1 && told[0].starts_with("error: rank 2 of 3: missing.onnx"), "{told:?}");
        assert_eq!(code, Some(3));
        let (told, code) = errors(&[1, 1], &format!("{tune} : {}", tune.replace("0.003", "0.004")));
        assert!(told.len() == 1 && told[0].starts_with("error: rank 1 of 2: other models, data"), "{told:?}");
        assert_eq!(code, Some(2));
        assert!(!sandbox.path("out.onnx").exists());
    }

    /// The child of `launcher` that has this rank.
    fn rank(launcher: u32, rank: usize) -> Option<u32> {
        let children = Command::new("pgrep").args(["-P", &launcher.to_string()]).output().ok()?;
        let children = text(&children.stdout);
        let mut ids = children.lines().filter_map(|id| id.parse::<u32>().ok());
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}\0");
        ids.find(|id| {
            std::fs::read(format!("/proc/{id}/environ")).is_ok_and(|e| text(&e).contains(&variable))
        })
    }

    fn signal(name: &str, process: u32) {
        let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// A run with two seeds that has left a checkpoint of the first one.
    fn run_with_checkpoint(sandbox: &Sandbox, arguments: &str) -> std::process::Child {
        let mut command = mpirun(sandbox, &[2], arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while !sandbox.path("out.onnx.checkpoint/run.json").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the run ended without a checkpoint");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    #[test]
    fn a_killed_process_ends_all_and_one_goes_on_from_the_checkpoint() {
        if !launcher_is_here() {
            return;
        }
        let sandbox = Sandbox::digits();
        let tune = format!(
            "tune digits_mlp.onnx -o out.onnx {DATA} --steps 400 --lr 0.003 --seeds 8 --threads 1 --folds 0"
        );
        let child = run_with_checkpoint(&sandbox, &tune);
        signal("KILL", rank(child.id(), 1).expect("the second rank"));
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && said.contains("exited on signal 9"),
            "{:?}\n{said}",
            output.status
        );
        assert!(!sandbox.path("out.onnx").exists());

        let words: Vec<String> =
            format!("{tune} --resume --json").split_whitespace().map(str::to_owned).collect();
        let resumed = report(&sandbox.program(&words[..]).output().unwrap());
        assert_eq!(resumed.arms[0].val.len(), 8);
        assert!(resumed.shipped.val > resumed.untouched.val);
        assert!(!sandbox.path("out.onnx.checkpoint").exists());
    }

    #[test]
    fn a_signal_to_the_launcher_keeps_the_best_so_far_and_all_go_on_later() {
        if !launcher_is_here() {
            return;
        }
        let sandbox = Sandbox::digits();
        let tune = format!(
            "tune digits_mlp.onnx -o out.onnx {DATA} --steps 400 --lr 0.003 --seeds 8 --threads 1 --json"
        );
        let child = run_with_checkpoint(&sandbox, &tune);
        signal("USR1", child.id());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        let stopped: Report = serde_json::from_slice(&output.stdout).unwrap();
        assert!(stopped.outcome == Outcome::Interrupted && stopped.shipped.val >= stopped.untouched.val);
        assert!(sandbox.path("out.onnx").exists());

        let output = mpirun(&sandbox, &[2], &format!("{tune} --resume")).output().unwrap();
        assert_eq!(report(&output).arms[0].val.len(), 8);
        assert!(!sandbox.path("out.onnx.checkpoint").exists());
    }

    #[test]
    fn the_clock_of_the_first_process_stops_all() {
        if !launcher_is_here() {
            return;
        }
        let sandbox = Sandbox::digits();
        let tune =
            format!("tune digits_mlp.onnx -o out.onnx {DATA} --steps 1000000 --lr 0.003 --time 1s --json");
        let stopped = report(&mpirun(&sandbox, &[2], &tune).output().unwrap());
        assert!(stopped.shipped.val >= stopped.untouched.val);
    }
}
