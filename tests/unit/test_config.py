"""Settings: wrong ones are refused with advice, every one is read somewhere, help is quick."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import yaml

from timemaster.algo.advantages import ADVANTAGES, group_advantages
from timemaster.algo.losses import POLICY_LOSSES, LossInputs, LossResult, policy_loss
from timemaster.cli import literal, read_settings, schema
from timemaster.config import ActorConfig, AlgorithmConfig, Config
from timemaster.config.help import help_text, typed
from timemaster.config.keys import all_settings, get, with_settings
from timemaster.config.registries import ENGINES, SINKS
from timemaster.config.resolve import resolve
from timemaster.fields import above, setting
from timemaster.run.folder import write_config
from timemaster.types import Example, Group, InputError, Rollout, Score

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = [*(item.name for item in fields(Config())), "actor.optim", "data.numeric"]
KEYS = [item.key for item in all_settings(Config())]
VALID = with_settings(
    Config(), {"model.path": "model", "data.recipes": ["recipes.ctu"], "data.train_files": ["train.parquet"]}
)


def test_resolving_fills_in_what_follows_and_leaves_what_was_given() -> None:
    given = with_settings(
        VALID,
        {
            "data.val_files": ["", "/v.parquet"],
            "judge.model": ["a", "b"],
            "judge.base_url": ["http://x/v1"],
            "judge.cache": "judge.sqlite",
            "reward.path": "mine.py:score",
            "eval.blank_images": "True",
        },
    )
    before = copy.deepcopy(given)
    config = resolve(given, "grpo")
    assert given == before
    here = Path.cwd()
    assert config.data.train_files == [str(here / "train.parquet")]
    assert config.data.val_files == ["/v.parquet"]
    assert config.trainer.default_local_dir == str(here / "checkpoints" / "TimeMaster" / "grpo")
    assert config.judge.base_url == ["http://x/v1"] * 2
    assert config.judge.api_key_env == ["OPENAI_API_KEY"] * 2
    assert [config.judge.cache, config.reward.path] == [str(here / "judge.sqlite"), f"{here}/mine.py:score"]
    assert config.eval.blank_images == "true"
    assert config.model.path == "model"  # no folder here, so a hub id
    assert resolve(config, "grpo") == config


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.path", "", "MODEL_PATH"),
        ("actor.ppo_mini_batch_size", 24, "try 32"),
        ("rollout.n", 1, "group of one"),
        ("rollout.name", "sglang", "auto, vllm, hf"),
        ("actor.ppo_max_token_len_per_gpu", 100, "at least 2048"),
        ("rollout.max_num_batched_tokens", 100, "at least rollout.max_num_seqs=256"),
        ("rollout.temperature", 0.0, "greater than 0"),
        ("trainer.test_freq", 5, "data.val_files"),
        ("trainer.n_gpus_per_node", 500, "every rank needs one"),
        ("data.train_files", [""], "example/data_preprocess"),
        ("data.recipes", [], "reward.path"),
        ("rollout.placement", "separate", "rollout.num_engines"),
        ("rollout.gpu_memory_utilization", 1.5, "less than 1. 0.5 to 0.9"),
        ("eval.checkpoint", ["best"], "step number"),
        ("trainer.logger", ["mlflow"], "console"),
        ("data.max_pixels", 3000, "at least data.min_pixels=3136"),
        ("data.numeric.decimals", -1, "null for the task's"),
        ("data.numeric.channel", "{name}", "a text with {values}"),
        ("data.numeric.channel", "{x}: {values}", "no other braces"),
        ("data.numeric.channel", "{}: {values}", "no other braces"),
        ("data.numeric.channel", "{values.mean}", "a text with {values}"),
        ("data.numeric.channel", "{{values}}", "a text with {values}"),
        ("data.numeric.channel", "{values", "a text with {values}"),
        ("data.numeric.separator", "", "readings run together"),
        ("eval.checkpoint", [], "step number"),
        ("eval.checkpoint", ["³"], "step number"),
        ("eval.top_k", 0, "-1 for all tokens"),
        ("trainer.experiment_name", "", "name the folder"),
        ("trainer.project_name", "", "trainer.project_name"),
        ("actor.optim.betas", [0.9, float("nan")], "finite"),
        ("data.mixture", {"a": 1.0, "b": float("inf")}, "finite"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_and_advice(key: str, value: object, says: str) -> None:
    with pytest.raises(InputError) as error:
        resolve(with_settings(VALID, {key: value}), "grpo")
    assert says in str(error.value)
    assert key.split(".")[0] in str(error.value)


@pytest.mark.parametrize("key", [key for key in KEYS if isinstance(get(Config(), key), float)])
def test_a_number_must_be_finite(key: str) -> None:
    for value in (float("inf"), float("-inf"), float("nan")):
        with pytest.raises(InputError, match=key):
            resolve(with_settings(VALID, {key: value}), "grpo")


def test_a_key_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(InputError, match=r"rollout\.tempratur: there is no such setting"):
        composed("+rollout.tempratur=1.0")
    with pytest.raises(AttributeError, match="tempratur"):
        with_settings(VALID, {"rollout.tempratur": 1.0})


TEXTS = [
    *(
        "a b",
        " a ",
        "",
        "a=b,c(d)#'&[]{};!~",
        "ü日",
        "1e-6",
        "1_000",
        "null",
        "true",
        "-x",
        "--help-me",
        "a:b",
        "\t",
        "\n",
    ),
    *(
        '"',
        "'",
        "\\",
        "a\\",
        "\\\\'",
        "it's",
        "*?%+@|<>`^",
        "'a' and 'b'",
        "a'b\"",
        "[a",
        "{a: b}",
        "choice(a,b)",
        "a,b",
    ),
    *("$", "${", "$x", "${a}", "a${b}c", "$${a}", "\\${a}", "\\\\${a}\\", "${oc.env:HOME}", "${trainer.seed}'"),
]


def composed(*arguments: str, section: type[Config] = Config) -> Config:
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=schema(section))
    with initialize_config_module("timemaster.config", version_base="1.3"):
        values = OmegaConf.to_container(
            compose("config", overrides=literal(arguments)), resolve=True, throw_on_missing=True
        )
    assert isinstance(values, dict)
    return read_settings(section, values)  # type: ignore[arg-type]


def test_text_is_taken_as_it_is_typed() -> None:
    for text in TEXTS:
        config = composed(f"model.path={text}", f"data.train_files={text}", f"++trainer.experiment_name={text}")
        assert [config.model.path, *config.data.train_files, config.trainer.experiment_name] == [text] * 3


def test_quotes_lists_and_numbers_are_hydras() -> None:
    config = composed(
        "model.path='a b'", 'reward.path="it\'s"', "trainer.project_name='1'",
        "data.train_files=[a.parquet,'b 1,2=[x].parquet']", "data.recipes=recipes.ctu", "eval.checkpoint=[base,3]",
        "trainer.logger=[console]", "actor.optim.lr=1e-6", "actor.optim.betas=[0.8, 0.9]", "rollout.n=1_000",
        "+data.mixture={a: 1, b: 2.5}", "+judge.extra_body={max_tokens: null}", "eval.blank_images=both",
        "trainer.val_only=True", "data.numeric.decimals=null",
    )  # fmt: skip
    assert [config.model.path, config.reward.path, config.trainer.project_name] == ["a b", "it's", "1"]
    assert config.data.train_files == ["a.parquet", "b 1,2=[x].parquet"]
    assert [config.data.recipes, config.eval.checkpoint] == [["recipes.ctu"], ["base", "3"]]
    assert [config.trainer.logger, config.actor.optim.lr, config.actor.optim.betas] == [["console"], 1e-6, [0.8, 0.9]]
    assert [config.rollout.n, config.data.mixture] == [1000, {"a": 1.0, "b": 2.5}]
    assert [config.judge.extra_body, config.eval.blank_images] == [{"max_tokens": None}, "both"]
    assert [config.trainer.val_only, config.data.numeric.decimals] == [True, None]


def test_what_is_no_text_setting_is_left_to_hydra() -> None:
    given = ["--cfg", "job", "rollout.n=3", "model.path", "hydra.run.dir=x y", "~trainer", "model.pat=a b", "=a b"]
    assert literal(given) == given


@pytest.mark.parametrize("value", ["[[a],b]", "[1.5]", "[null]", "[{a: 1}]"])
def test_a_list_of_something_else_than_texts_is_refused_with_advice(value: str) -> None:
    with pytest.raises(InputError, match=r"data\.train_files=\[.*: give one text, or a list such as"):
        composed(f"data.train_files={value}")


@pytest.mark.parametrize(("given", "value"), [("data.numeric.decimals=3", 3), ("data.numeric.decimals=null", None)])
def test_decimals_are_a_number_or_left_to_the_task(given: str, value: int | None) -> None:
    assert Config().data.numeric.decimals is None
    assert composed(given).data.numeric.decimals == value
    assert resolve(with_settings(VALID, {"data.numeric.decimals": value}), "grpo").data.numeric.decimals == value


def test_help_explains_every_setting_and_its_defaults_can_be_typed() -> None:
    text = help_text(Config(), width=100)
    assert max(map(len, text.splitlines())) <= 100
    for item in all_settings(Config()):
        assert f"\n  {item.key}={typed(item.value)}" in text
        assert len(item.meaning.split()) >= 1, item.key
        assert not item.meaning.endswith("."), item.key
        assert item.rule is None or item.rule.holds(item.value), item.key
    same = [f"{key}={typed(get(Config(), key))}" for key in KEYS if typed(get(Config(), key)) not in ("{}", "$'\\n'")]
    assert resolve(with_settings(composed(*same), {"model.path": "m", "data.train_files": ["a"]}), "sft") == resolve(
        with_settings(Config(), {"model.path": "m", "data.train_files": ["a"]}), "sft"
    )


def capped(x: LossInputs, cfg: Actor) -> LossResult:
    """REINFORCE whose importance weights have a ceiling."""
    weights = (x.logprobs.detach() - x.old_logprobs).exp().clamp(max=cfg.weight_ceiling)
    return -weights * x.advantages * x.logprobs, {}


@dataclass(kw_only=True, slots=True)
class Actor(ActorConfig):
    weight_ceiling: float = setting(2.0, "largest weight of a token", above(0))  # in the library: a field of LossConfig


@dataclass(kw_only=True, slots=True)
class Settings(Config):
    actor: Actor = field(default_factory=Actor)


def test_a_loss_with_a_coefficient_is_one_function_one_line_and_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICY_LOSSES, "capped", capped)
    shown = " ".join(help_text(Settings(), 120).split())
    assert "actor.weight_ceiling=2.0 largest weight of a token [greater than 0]" in shown
    assert "[one of ppo_clip, capped]" in shown
    typed_in = ("actor.policy_loss=capped", "actor.weight_ceiling=1.5", "model.path=m", "data.train_files=a.parquet")
    cfg = resolve(composed(*typed_in, section=Settings), "sft")
    x = LossInputs(
        logprobs=torch.tensor([-1.0, -1.0], requires_grad=True), entropy=torch.zeros(2), ref_logprobs=None,
        old_logprobs=torch.tensor([-2.0, -1.0]), advantages=torch.tensor([1.0, 1.0]),
    )  # fmt: skip
    loss, _ = policy_loss(x, cfg.actor, denominator=2.0)
    assert float(loss) == pytest.approx((1.5 + 1.0) / 2)  # the weight of the first token would be e = 2.7
    with pytest.raises(InputError, match=r"actor\.weight_ceiling=0\.0: must be greater than 0"):
        resolve(composed(*typed_in, "actor.weight_ceiling=0", section=Settings), "sft")


@dataclass(kw_only=True, slots=True)
class Scaled(AlgorithmConfig):
    advantage_scale: float = setting(3.0, "factor of every advantage")  # in the library: a field of AlgorithmConfig


def test_an_advantage_with_a_coefficient_is_one_function_one_line_and_one_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ADVANTAGES, "scaled", lambda scores, cfg: [cfg.advantage_scale * score for score in scores])
    cfg = replace(VALID, algorithm=Scaled(adv_estimator="scaled"))
    rollouts = [
        Rollout(
            id="r", token_ids=[], mask=[], logprobs=[], versions=[], media=[], text="", finish_reason="stop",
            score=Score(total=total, parts={}),
        )
        for total in (0.0, 2.0)
    ]  # fmt: skip
    group = Group(Example(id="r", messages=[], answer="", data_source=""), rollouts)
    assert group_advantages(group, resolve(cfg, "grpo").algorithm, "group") == [0.0, 6.0]


@pytest.mark.parametrize("path", [*ENGINES.values(), *SINKS.values()])
def test_registries_name_classes_that_exist(path: str) -> None:
    assert isinstance(resolve_name(path), type)


def dotted(node: ast.AST) -> str:
    """The text of an expression such as self.cfg.rollout.n; "" for one that is no plain chain of names."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def binds(node: ast.AST) -> bool:
    """Whether a node gives a name its value."""
    return isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def keys_read(function: ast.AST) -> set[str]:
    """The keys a function reads: cfg.rollout.n, or r.n where it says `r = cfg.rollout` or takes `r: RolloutConfig`.

    A name that gets another value in the same function counts for nothing.
    """
    sections = {kind.__name__: key for key in SECTIONS for kind in type(get(Config(), key)).__mro__[:-1]}
    local: dict[str, str] = {}

    def key(node: ast.AST) -> str:
        first, _, rest = dotted(node).partition(".")
        return f"{local[first]}.{rest}" if first in local else f".{first}.{rest}".partition(".cfg.")[2]

    nodes = list(ast.walk(function))
    for node in nodes:
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name) and node.annotation.id in sections:
            local[node.arg] = sections[node.annotation.id]
        for target in node.targets if isinstance(node, ast.Assign) else []:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]
            local |= {
                name.id: key(value) for name, value in pairs if isinstance(name, ast.Name) and key(value) in SECTIONS
            }
    bound = Counter(node.arg if isinstance(node, ast.arg) else node.id for node in nodes if binds(node))
    local = {name: section for name, section in local.items() if bound[name] == 1}
    return {key(node) for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_keys_read_sees_reads_and_nothing_else() -> None:
    def keys(code: str) -> set[str]:
        return keys_read(ast.parse(code)) & set(KEYS)

    assert keys("x = self.cfg.rollout.n + run.cfg.actor.optim.betas[0]") == {"rollout.n", "actor.optim.betas"}
    assert keys("r, d = cfg.rollout, cfg.data\nprint(r.n, d.seed.bit_length())") == {"rollout.n", "data.seed"}
    assert keys("def f(optim: OptimConfig):\n    return optim.lr") == {"actor.optim.lr"}
    assert keys("def f(cfg: LossConfig):\n    return cfg.kl_loss_coef") == {"actor.kl_loss_coef"}
    assert keys("def f(j: JudgeConfig):\n    return j.timeout") == {"judge.timeout"}  # not reward.timeout
    assert keys("cfg = self.cfg.model\ncfg.path") == {"model.path"}
    assert keys("r = cfg.rollout\nr = other\nr.n") == set()
    assert keys("# cfg.rollout.n\n'cfg.rollout.n'\nother.n\nspec.rollout.n\ncfg.rollout.n = 1") == set()


NO_READERS = ("checks.py", "resolve.py")  # to check or complete a setting is not to follow it


def test_every_setting_is_read_somewhere() -> None:
    read = set()
    for path in (ROOT / "timemaster").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.name not in NO_READERS else []:
            read |= set().union(*map(keys_read, node.body if isinstance(node, ast.ClassDef) else [node]))
    assert sorted(set(KEYS) - read) == []


def test_the_library_does_not_change_settings_in_place() -> None:
    """Only `resolve` and `with_settings` do, and only in a copy of their own."""
    for path in (ROOT / "timemaster").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load) and path.name != "resolve.py":
                key = f".{dotted(node)}".partition(".cfg.")[2]
                assert not key, f"{path.name}:{node.lineno} sets cfg.{key}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "timemaster.grpo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_unknown_keys_and_wrong_types_stop_the_program() -> None:
    unknown = run("rollout.tempratur=1.0")
    assert unknown.returncode != 0
    assert "tempratur" in unknown.stderr
    wrong = run("rollout.n=many")
    assert wrong.returncode != 0
    assert "many" in wrong.stderr
    reserved = run("model.path=???")
    assert reserved.returncode == 2
    assert "./???" in reserved.stdout
    missing = run("data.train_files=nowhere.parquet")
    assert missing.returncode == 2
    assert "MODEL_PATH" in missing.stderr + missing.stdout


def test_help_lists_the_settings_without_torch_ray_or_vllm() -> None:
    code = "import sys, timemaster.grpo, timemaster.cli; print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert "ppo_mini_batch_size" in run("--help").stdout


def test_a_run_records_what_the_command_line_set_and_nothing_else(tmp_path: Path) -> None:
    write = f"write_config(Path({str(tmp_path)!r}), cfg)"
    program = (
        "from pathlib import Path; from timemaster.cli import launch; from timemaster.run.folder import write_config; "
    )
    program += f"launch(lambda cfg: {write}, 'grpo')"
    given = ["model.path=m", "data.recipes=recipes.ctu", "data.train_files=a.parquet", "rollout.n=4", "rollout.n=8"]
    done = subprocess.run(
        [sys.executable, "-c", program, *given], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "overrides.yaml").read_text(encoding="utf-8")) == given
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))["rollout"]["n"] == 8
    write_config(tmp_path, Config())  # no command line
    assert yaml.safe_load((tmp_path / "overrides.yaml").read_text(encoding="utf-8")) == []
