"""The scripts in example/: setup_env.sh with stand-ins for python3, uv and nvidia-smi, and what the others must set."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# python3, and .venv/bin/python once "made": each step is written to steps.log, the one named by FAIL fails midway.
PYTHON = """#!/bin/sh
log() { echo "$1" >>"$PROJECT/steps.log"; sleep "${SLEEP:-0}"; }
case "$*" in
    -V) echo "Python 3.9.1" ;;
    -c*) test -z "$OLD" && exec REAL "$@" ;;
    "-m venv --clear .venv")
        log venv; rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python
        test "$FAIL" != venv && touch .venv/pip ;;
    "-m pip --version") test -f .venv/pip ;;
    "-m pip install --quiet uv") log pip; test "$FAIL" != pip && cp "$PROJECT/bin/uv" .venv/bin/uv ;;
esac
"""
TIMEMASTER = """#!/bin/sh
log() { echo "$1" >>"$PROJECT/steps.log"; }
trap 'log TERM; exit 5' TERM; trap 'log INT; exit 6' INT; log "started $1"
while test -e "$PROJECT"; do sleep 0.05; done
"""
UV = """#!/bin/sh
echo "uv $1 $2" $(cat) >>"$PROJECT/steps.log"
test "$FAIL" != uv
"""
WORST = "a b=1,(ü)#'日[x]&{};!~$y"  # the worst letters of a path
SCRIPT = """set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
echo "in $(pwd) with ${DATA:-} ${MODEL_PATH:-} $*"
"""
CPU, GPU = ("uv pip sync -r requirements-cpu.txt -e .", "uv pip sync -r requirements-gpu.txt -e .")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with the real setup_env.sh and stand-ins for the commands it calls."""
    project = tmp_path / WORST
    shutil.copytree(ROOT / "example", project / "example")
    shutil.copy(ROOT / "pyproject.toml", project)
    (project / "example" / "script.sh").write_text(SCRIPT, encoding="utf-8")
    for name in ("requirements-cpu.txt", "requirements-gpu.txt"):
        (project / name).write_text("numpy==2\n", encoding="utf-8")
    command(project, "python3", PYTHON.replace("REAL", sys.executable))
    command(project, "timemaster", TIMEMASTER)
    command(project, "uv", UV)
    command(project, "nvidia-smi", "#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    return project


def command(project: Path, name: str, text: str) -> None:
    (project / "bin").mkdir(exist_ok=True)
    (project / "bin" / name).write_text(text, encoding="utf-8")
    (project / "bin" / name).chmod(0o755)


def start(project: Path, *arguments: str, script: str = "script.sh", **environment: str) -> subprocess.Popen[str]:
    here = project.parent / "elsewhere"
    (here / "model").mkdir(parents=True, exist_ok=True)
    environment |= {"PATH": f"{project}/bin:/usr/bin:/bin", "PROJECT": str(project)}
    cleared = ("DATA", "MODEL_PATH", "PYTHON", "REQUIREMENTS")
    kept = {name: value for name, value in os.environ.items() if name not in cleared}
    return subprocess.Popen(
        ["bash", str(project / "example" / script), *arguments],
        cwd=here, env=kept | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A test run in the background ignores Ctrl-C, and bash cannot undo that for what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def run(project: Path, *arguments: str, script: str = "script.sh", **environment: str) -> tuple[int, str]:
    process = start(project, *arguments, script=script, **environment)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def steps(project: Path) -> list[str]:
    """What was done since the last look."""
    log = project / "steps.log"
    done = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return done


def test_packages_are_installed_once_and_again_when_the_list_changes(project: Path) -> None:
    code, said = run(project)
    assert code == 0, said
    assert steps(project) == ["venv", "pip", CPU]
    assert run(project)[0] == 0
    assert steps(project) == []
    (project / "requirements-cpu.txt").write_text("numpy==3\n", encoding="utf-8")
    assert run(project)[0] == 0
    assert steps(project) == ["pip", CPU]


def test_a_copied_project_makes_its_own_environment(project: Path) -> None:
    """The commands in .venv/bin run the project where they were installed."""
    assert run(project)[0] == 0
    steps(project)
    copy = project.with_name("copy")
    shutil.copytree(project, copy, symlinks=True)
    assert run(copy)[0] == 0
    assert steps(copy) == ["venv", "pip", CPU]
    assert run(copy)[0] == 0
    assert steps(copy) == []


@pytest.mark.parametrize(
    ("step", "says"), [("venv", "-m venv' failed"), ("pip", "install uv' failed"), ("uv", "sync'")]
)
def test_a_failed_step_is_named_and_the_next_start_goes_on_from_it(project: Path, step: str, says: str) -> None:
    assert run(project)[0] == 0
    if step == "venv":
        shutil.rmtree(project / ".venv")
    (project / "requirements-cpu.txt").write_text("numpy==3\n", encoding="utf-8")
    code, said = run(project, FAIL=step)
    assert code == 1
    assert says in said
    assert "in /" not in said  # the script did not go on
    assert not (project / ".venv" / ".installed").exists()
    steps(project)
    code, said = run(project)
    assert code == 0, said
    # A folder without pip, as an interrupted venv leaves it, is made again.
    assert steps(project) == (["venv"] if step == "venv" else []) + ["pip", CPU]


def test_a_python_outside_requires_python_is_refused_with_what_to_do(project: Path) -> None:
    code, said = run(project, OLD="1")
    assert code == 1
    assert "python3 is Python 3.9.1" in said
    assert 'requires-python = ">=3.11' in said
    assert "PYTHON=python3.12" in said
    assert "nowhere is missing" in run(project, PYTHON="nowhere")[1]
    assert steps(project) == []


def test_a_gpu_is_found_whatever_the_length_of_the_list(project: Path) -> None:
    # More than a pipe holds: a reader that leaves at the first line would end nvidia-smi by SIGPIPE.
    command(project, "nvidia-smi", '#!/bin/sh\nseq -f "GPU %.0f: a name" 0 9999\n')
    assert run(project)[0] == 0
    assert steps(project) == ["venv", "pip", GPU]


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_scripts_started_at_once_install_once(project: Path) -> None:
    both = [start(project, SLEEP="0.5") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert steps(project) == ["venv", "pip", CPU]
    assert "waiting for another script" in "".join(said)


def test_paths_are_seen_from_the_callers_folder(project: Path) -> None:
    here = project.parent / "elsewhere"
    given = ("--source", "a b", "--out=out", "--workers", "2", "data.seed=2")
    code, said = run(project, *given, DATA="data", MODEL_PATH="model")
    assert code == 0, said
    assert said.splitlines()[-1] == (
        f"in {project} with {here}/data {here}/model --source {here}/a b --out={here}/out --workers 2 data.seed=2"
    )
    said = run(project, "--source", "/x", DATA="/data", MODEL_PATH="Qwen/Qwen2.5-VL-3B-Instruct")[1]
    assert said == f"in {project} with /data Qwen/Qwen2.5-VL-3B-Instruct --source /x\n"  # absolute; a hub id


def test_a_path_that_looks_like_an_option_is_left_alone(project: Path) -> None:
    said = run(project, "--source", "/x --out=y", "--workers", "2", "model.path=/z --out=y")[1]
    assert said.endswith("--source /x --out=y --workers 2 model.path=/z --out=y\n")


def gpu(project: Path, driver: str, cuda: str) -> None:
    """A machine with a GPU: what nvidia-smi says there."""
    answers = f'-L) echo "GPU 0: a name" ;; --query-gpu=driver_version*) echo {driver}; echo {driver} ;;'
    command(project, "nvidia-smi", f'#!/bin/sh\ncase "$*" in {answers} *) echo "| CUDA Version: {cuda} |" ;; esac\n')


@pytest.mark.parametrize(("driver", "cuda"), [("580.65.06", "13.0"), ("600.1", "13.4"), ("550.54.15", "13.0")])
def test_a_driver_that_runs_cuda_13_is_accepted(project: Path, driver: str, cuda: str) -> None:
    gpu(project, driver, cuda)  # the last: an older driver under cuda-compat-13
    assert run(project)[0] == 0
    assert steps(project) == ["venv", "pip", GPU]


@pytest.mark.parametrize("driver", ["570.211.01", "535.274.02", "99.9"])
def test_an_older_driver_is_refused_with_what_to_do(project: Path, driver: str) -> None:
    gpu(project, driver, "12.8")
    code, said = run(project)
    assert code == 1
    assert f"driver is {driver}" in said
    assert "R580 or later" in said
    assert "cuda-compat" in said
    assert steps(project) == []
    assert run(project, REQUIREMENTS="requirements-cpu.txt")[0] == 0  # as the message says
    assert steps(project) == ["venv", "pip", CPU]


def wait_for(project: Path, text: str) -> None:
    log = project / "steps.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and text in log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "program"),
    [
        ("data_preprocess/har.sh", "prepare"),
        ("sft_trainer/run_ctu.sh", "sft"),
        ("grpo_trainer/run_ctu.sh", "grpo"),
        ("grpo_trainer/run_italy_power.sh", "grpo"),
        ("quickstart.sh", "prepare"),
        ("small.sh italy_power", "prepare"),
        ("compare_modalities.sh italy_power", "grpo"),
    ],
)
def test_a_signal_to_the_script_reaches_the_program_and_ends_both(project: Path, script: str, program: str) -> None:
    name, *arguments = script.split()
    for number, code in ((signal.SIGTERM, 5), (signal.SIGINT, 6)):
        process = start(project, *arguments, script=name)
        wait_for(project, f"started {program}")
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert steps(project)[-1] == number.name[3:]


def texts(folder: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "example" / folder).glob("*.sh"))}


def settings_of(script: str, **environment: str) -> dict[str, Any]:
    """What a run script hands to the program, which prints it and ends."""
    command = ["bash", str(ROOT / "example" / script), "--cfg", "job"]
    out = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return yaml.safe_load(out.stdout)


@pytest.mark.parametrize("task", ["ctu", "ecg", "emg", "emg_soft", "har", "rcw", "tee"])
def test_each_dataset_has_its_scripts_with_the_published_settings(task: str) -> None:
    warm = settings_of(f"sft_trainer/run_{task}.sh")
    assert (warm["data"]["recipes"], warm["data"]["train_files"]) == (
        f"recipes.{task}",
        f"data/{task}_image/sft.parquet",
    )
    run = settings_of(f"grpo_trainer/run_{task}.sh", NUM_GPUS="4", VARIANT="script", DATA="/d", EVAL="True")
    assert (run["data"]["recipes"], run["data"]["test_files"]) == (f"recipes.{task}", "/d/test.parquet")
    batches = (32, 16, 5) if task == "tee" else (64, 32, 5)  # TEE has 63 training rows
    assert (run["data"]["train_batch_size"], run["actor"]["ppo_mini_batch_size"], run["rollout"]["n"]) == batches
    assert (run["actor"]["kl_loss_coef"], run["actor"]["optim"]["lr"]) == (0.01, 1e-6)
    trainer = run["trainer"]
    assert (trainer["n_gpus_per_node"], trainer["total_training_steps"], trainer["val_only"]) == (4, 300, True)
    assert trainer["project_name"] == warm["trainer"]["project_name"] == f"TimeMaster_{task.upper()}"
    assert run["judge"]["model"] == ("gpt-4o" if task == "emg_soft" else [])
    assert f"timemaster prepare recipes.{task} " in texts("data_preprocess")[f"{task}.sh"]


def test_scripts_pass_the_worst_letters_on(tmp_path: Path) -> None:
    model = tmp_path / WORST
    model.mkdir()
    names = {"DATA": str(tmp_path / f"{WORST}${{x}}\\"), "MODEL_PATH": str(model)}
    found = settings_of("grpo_trainer/run_ctu.sh", NAME='"1e-6', **names)
    assert found["model"]["path"] == names["MODEL_PATH"]
    assert found["data"]["test_files"] == f"{names['DATA']}/test.parquet".replace("${", "\\${")  # omegaconf's way
    assert found["trainer"]["experiment_name"] == '"1e-6_paper'


def test_the_two_published_variants_differ_in_the_kl_coefficient_and_have_folders_of_their_own() -> None:
    found = {name: settings_of("grpo_trainer/run_ctu.sh", VARIANT=name) for name in ("paper", "script")}
    assert {name: one["actor"]["kl_loss_coef"] for name, one in found.items()} == {"paper": 0.001, "script": 0.01}
    assert len({one["trainer"]["experiment_name"] for one in found.values()}) == 2


def test_a_script_that_limits_the_difference_of_logprobs_pins_float32() -> None:
    limited = [name for name, text in texts("grpo_trainer").items() if "rollout.limit_logprob_diff=" in text]
    assert "run_italy_power.sh" in limited
    for folder in ("sft_trainer", "grpo_trainer"):  # bfloat16 is what model.dtype=auto means on a GPU
        assert all("model.dtype=float32" in texts(folder)[name] for name in limited), folder


def test_scripts_run_where_vllm_does_not_install() -> None:
    for text in texts("grpo_trainer").values():
        assert "rollout.name=auto" in text or "\nsource example/grpo_trainer/published.sh\n" in text
    for line in (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(("vllm", "intel-", "xgrammar", "llguidance")):
            assert "sys_platform == 'linux'" in line


# In the place of the scripts and modules that small.sh starts: each writes down its arguments.
STAND_IN = """#!/bin/sh
case "$*" in *timemaster.system.memory*) exit 0 ;; esac
(printf 'NAME'; printf ' %s' "$@"; echo) >>"$PROJECT/steps.log"
"""
MAKE_ROWS = """
import os, pathlib, pyarrow, pyarrow.parquet
folder = pathlib.Path(os.environ["DATA"])
folder.mkdir(parents=True)
pyarrow.parquet.write_table(pyarrow.table({"a": list(range(int(os.environ["ROWS"])))}), folder / "sft.parquet")
"""


def small(project: Path, *arguments: str, rows: int) -> tuple[dict[str, list[str]], int, str]:
    """What small.sh hands to its stages, by their folders, for data of so many training rows; exit code and output."""
    scripts = {
        "sft_trainer/run_tee.sh": STAND_IN.replace("NAME", "sft"),
        "grpo_trainer/run_tee.sh": STAND_IN.replace("'NAME'", '"grpo${EVAL:+_eval}"'),
        "data_preprocess/tee.sh": STAND_IN.replace("NAME", "data") + f"exec '{sys.executable}' -c \"$MAKE_ROWS\"\n",
    }
    for name, text in scripts.items():
        (project / "example" / name).write_text(text, encoding="utf-8")
    real = f'#!/bin/sh\ntest "$1" = -c && exec \'{sys.executable}\' "$@"'
    command(project, "python", STAND_IN.replace("#!/bin/sh", real).replace("NAME", "module"))
    command(project, "timemaster", STAND_IN.replace("NAME", "command"))
    environment = project / "example" / "setup_env.sh"  # without its last line, which installs
    environment.write_text(environment.read_text(encoding="utf-8").removesuffix("setup_env\n"), encoding="utf-8")
    code, said = run(project, "tee", *arguments, script="small.sh", ROWS=str(rows), MAKE_ROWS=MAKE_ROWS)
    return {line.split()[0]: line.split()[1:] for line in steps(project)}, code, said


def last(arguments: list[str], key: str) -> str:
    """The value of a setting, which is the one given last."""
    return [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{key}=")][-1]


@pytest.mark.parametrize(("rows", "batch", "num_steps"), [(7, "7", "200"), (32, "32", "200"), (500, "32", "312")])
def test_the_small_scripts_batches_follow_the_rows(rows: int, batch: str, num_steps: str, project: Path) -> None:
    stages, code, said = small(project, "--source", "a=b c", rows=rows)
    assert code == 0, said
    assert stages["data"] == ["--plot", "small", "--source", f"{project.parent}/elsewhere/a=b", "c"]
    assert last(stages["sft"], "data.train_batch_size") == batch
    assert last(stages["sft"], "trainer.total_training_steps") == num_steps  # 500 x 20 / 32 = 312.5
    for name in ("grpo", "grpo_eval"):
        assert last(stages[name], "data.train_batch_size") == last(stages[name], "actor.ppo_mini_batch_size") == batch


def test_the_small_script_hands_settings_to_the_stages_that_take_them(project: Path) -> None:
    given = ("data.train_batch_size=8", "rollout.n=8", "--seed=3", "actor.optim.lr=1e-3", "--workers", "1")
    stages, code, said = small(project, *given, rows=100)
    assert code == 0, said
    assert stages["data"] == ["--plot", "small", "--seed=3", "--workers", "1"]
    for name in ("sft", "grpo", "grpo_eval"):
        assert (last(stages[name], "data.train_batch_size"), last(stages[name], "actor.optim.lr")) == ("8", "1e-3")
    assert last(stages["sft"], "trainer.total_training_steps") == "250"  # 100 x 20 / 8
    assert not [argument for argument in stages["sft"] if argument.startswith("rollout.")]
    assert (last(stages["grpo"], "rollout.n"), last(stages["grpo"], "actor.ppo_mini_batch_size")) == (
        "8",
        "8",
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("DIR", "DIR is neither an option"),
        ("data.train_batch_size=many", "give a whole number of rows"),
        ("trainer.total_training_steps=3", "SFT_STEPS, GRPO_STEPS"),
        ("--out=x", "this script sets the folders"),
    ],
)
def test_the_small_script_refuses_what_it_cannot_hand_on(argument: str, message: str, project: Path) -> None:
    stages, code, said = small(project, argument, rows=7)
    assert (stages, code) == ({}, 1)
    assert message in said
