//! Runs the program as a user does, on a small text.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn train_sae(args: &[&str], dir: &Path) -> Output {
    command(args, dir).output().expect("can run")
}

fn command(args: &[&str], dir: &Path) -> Command {
    let mut command = train(dir);
    let paragraph = |n| format!("Paragraph {n} tells of {} rivers and {} towns.\n\n", n * 7 % 31, n * 11 % 17);
    fs::write(dir.join("text.txt"), (0..600).map(paragraph).collect::<String>()).expect("can write");
    command.args("--text text.txt --rows 1501 --layers 0,1 --latents 96".split(' ')).args(args);
    command
}

fn train(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train_sae"));
    command.args("--out out --batch-size 64 --window 256 -k 8".split(' ')).current_dir(dir);
    command
}

#[test]
fn a_run_leaves_saes_a_picture_and_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let output = train_sae(&[], dir.path());
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("1501 rows taken, 1501 served in 24 minibatches, 0 in the ring, 0 queued;"), "{stdout}");
    for layer in ["layer.0", "layer.1"] {
        let bytes = fs::read(dir.path().join(format!("out/sae.{layer}.safetensors"))).unwrap();
        let sae = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(sae.tensor("W_enc").unwrap().shape(), [384, 96]);
        assert_eq!(sae.tensor("b_enc").unwrap().shape(), [96]);
        assert_eq!(sae.tensor("W_dec").unwrap().shape(), [96, 384]);
        assert_eq!(sae.tensor("b_dec").unwrap().shape(), [384]);
    }
    let picture = fs::read_to_string(dir.path().join("out/run.svg")).unwrap();
    assert!(picture.contains("layer.1 SAE") && !picture.contains("NaN") && !picture.contains("inf"));
}

#[test]
fn reproducible_runs_agree_to_the_last_bit() {
    let [first, second] = [(); 2].map(|()| {
        let dir = tempfile::tempdir().unwrap();
        let output = train_sae(&["--reproducible"], dir.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        saes(dir.path())
    });
    assert!(first == second);
}

#[test]
fn one_capture_is_recorded_and_trains_many_saes() {
    let dir = tempfile::tempdir().unwrap();
    let captured = train_sae(&["--record", "recording"], dir.path());
    assert!(captured.status.success(), "{}", String::from_utf8_lossy(&captured.stderr));
    let again = train_sae(&["--record", "recording"], dir.path());
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there already"));

    fs::remove_file(dir.path().join("text.txt")).unwrap();
    let replay = |args: &str| {
        let mut run = train(dir.path());
        run.args("--replay recording --epochs 2 --reproducible".split(' ')).args(args.split(' '));
        run
    };
    let output = replay("--latents 96,48 --sae-seeds 3,5").output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("3002 rows taken, 3002 served in 47 minibatches"), "{stdout}");
    let sae = |layer, latents, seed| {
        fs::read(dir.path().join(format!("out/sae.layer.{layer}.{latents}.seed{seed}.safetensors"))).unwrap()
    };
    for (layer, latents) in [(0, 96), (0, 48), (1, 96), (1, 48)] {
        assert!(sae(layer, latents, 3) != sae(layer, latents, 5));
        let bytes = sae(layer, latents, 3);
        let shape = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("W_enc").unwrap().shape().to_vec();
        assert_eq!(shape, [384, latents]);
    }

    // Another process trains one layer and one SAE. The result is the same to the last bit, even if it is killed and goes on.
    let one = "--layers 1 --latents 48 --seed 5";
    assert!(replay(one).output().unwrap().status.success());
    let whole = fs::read(dir.path().join("out/sae.layer.1.safetensors")).unwrap();
    let killed = format!("{one} --checkpoint saved --checkpoint-every 2 --resume");
    let snapshots = activation_store::Snapshots::new(dir.path().join("saved"));
    let mut run = replay(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while snapshots.list().unwrap_or_default().is_empty() && run.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let _ = run.kill();
    let _ = run.wait();
    let output = replay(&killed).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("resumed behind"));
    assert!(fs::read(dir.path().join("out/sae.layer.1.safetensors")).unwrap() == whole, "the SAEs differ");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_capture_and_what_is_there_is_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let args: Vec<&str> = "--rows 100000000 --checkpoint saved --checkpoint-every 2".split(' ').collect();
    let mut run = command(&args, dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let snapshots = activation_store::Snapshots::new(dir.path().join("saved"));
    while snapshots.list().unwrap_or_default().is_empty() {
        assert!(run.try_wait().unwrap().is_none(), "it has ended too early");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.contains("stopping"), "{stdout}{stderr}");
    let counts: Vec<&str> = stdout.lines().find(|line| line.contains(" rows taken, ")).unwrap().split(' ').collect();
    let number = |behind: &str| counts[counts.iter().position(|word| *word == behind).unwrap() - 1];
    assert_eq!(number("served"), number("rows"), "{stdout}");
    assert_ne!(number("rows"), "100000000");
    assert!(saes(dir.path()).iter().all(|sae| !sae.is_empty()));
}

#[test]
fn what_makes_no_sense_is_refused_with_its_value() {
    let dir = tempfile::tempdir().unwrap();
    for (args, message) in [
        (["--window", "32"], "32"),
        (["-k", "97"], "-k 97"),
        (["--layers", "1,1"], "1 is there twice"),
        (["--layers", "9"], "layer 9 does not exist"),
        (["--rows", "63"], "--rows 63"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--model", "missing"], "--model missing"),
        (["--latents", "96,96"], "96 is there twice"),
        (["--epochs", "2"], "--replay"),
    ] {
        let output = train_sae(&args, dir.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(message), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
    let output = train(dir.path()).args(["--replay", "missing"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("missing/training is no recording"), "{stderr}");
}

#[test]
fn a_run_that_is_killed_while_it_records_goes_on_to_the_same_recording() {
    let whole = tempfile::tempdir().unwrap();
    let recorded = |dir: &Path| {
        let recording = activation_store::Recording::open(dir.join("recording/training")).unwrap();
        let rows: Vec<u64> = (0..recording.rows()).collect();
        let lanes = recording.lanes().into_iter().map(|(name, lane)| (name, lane.rows, lane.passes, lane.finished));
        (lanes.collect::<Vec<_>>(), ["layer.0", "layer.1"].map(|layer| recording.get(layer, &rows).unwrap().to_f32()))
    };
    assert!(train_sae(&["--reproducible", "--record", "recording"], whole.path()).status.success());
    for form in [&[][..], &["--full"]] {
        let dir = tempfile::tempdir().unwrap();
        let resume = "--reproducible --record recording --checkpoint saved --checkpoint-every 2 --resume".split(' ');
        let args: Vec<&str> = resume.chain(form.iter().copied()).collect();
        let mut run = command(&args, dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let snapshots = activation_store::Snapshots::new(dir.path().join("saved"));
        while snapshots.list().unwrap_or_default().len() < 2 && run.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        let _ = run.kill();
        let _ = run.wait();
        let output = train_sae(&args, dir.path());
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && stdout.contains("resumed behind minibatch"), "{stdout}{stderr}");
        assert!(saes(dir.path()) == saes(whole.path()), "the SAEs differ");
        assert!(recorded(dir.path()) == recorded(whole.path()), "the recordings differ");
    }
}

/// The SAEs of a run.
fn saes(dir: &Path) -> [Vec<u8>; 2] {
    ["layer.0", "layer.1"].map(|layer| fs::read(dir.join(format!("out/sae.{layer}.safetensors"))).expect("an SAE"))
}

/// Kills runs when they have written some more checkpoints: three times, or as often as KILLS says. Then lets one run end.
#[test]
fn a_run_that_is_killed_goes_on_to_the_same_saes() {
    let kills: u64 = std::env::var("KILLS").map_or(3, |kills| kills.parse().unwrap());
    let rows = (500 * kills + 1).to_string();
    let minibatches = (500 * kills + 1).div_ceil(64);
    let whole = tempfile::tempdir().unwrap();
    assert!(train_sae(&["--reproducible", "--rows", &rows], whole.path()).status.success());
    for form in [&[][..], &["--full"]] {
        let dir = tempfile::tempdir().unwrap();
        let resume = "--reproducible --checkpoint saved --checkpoint-every 2 --resume".split(' ');
        let args: Vec<&str> = resume.chain(["--rows", &rows]).chain(form.iter().copied()).collect();
        let newest = || {
            let snapshots = activation_store::Snapshots::new(dir.path().join("saved"));
            snapshots.list().unwrap_or_default().pop().map_or(0, |(k, _)| k)
        };
        for kill in 0..kills {
            let before = newest();
            let mut run = command(&args, dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Each time after another number of minibatches.
            while newest() <= before + kill % 3 && run.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            let _ = run.kill();
            let _ = run.wait();
            assert!(newest() > before || newest() + 2 > minibatches, "{kill}: nothing was saved since {before}");
        }
        let output = train_sae(&args, dir.path());
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stdout}{stderr}");
        assert!(stdout.contains("resumed behind minibatch"), "{stdout}");
        let all = format!("{rows} rows taken, {rows} served in {minibatches} minibatches, 0 in the ring");
        assert!(stdout.contains(&all), "{stdout}");
        assert!(saes(dir.path()) == saes(whole.path()), "the SAEs differ");
        let other = train_sae(&[&args[..], &["--rate", "0.1"]].concat(), dir.path());
        let stderr = String::from_utf8_lossy(&other.stderr);
        assert!(!other.status.success() && stderr.contains("it is of another run"), "{stderr}");
    }
}
