import pytest

from comneck_hf.training.stages import (
    PRESETS,
    Stage,
    choose_stages,
    codec_stages,
    comneck_stages,
    find_preset,
    plan_steps,
)


def stage(name: str, trains: str, share: float) -> Stage:
    return Stage(name, "test", (trains,), share=share)


def test_the_stages_of_d1_are_the_papers():
    stages = comneck_stages("d1", PRESETS["paper"], lmbda=1.0)
    assert [dict(stage.weights) for stage in stages] == [
        {"cross_entropy": 1.0},
        {"cross_entropy": 1.0, "distillation": 100.0},
        {"distillation": 100.0},
    ]
    assert [stage.learning_rate for stage in stages] == [1.0, 0.1, 0.1]
    assert {stage.trains for stage in stages} == {("neck",)}
    assert [(span.first, span.end) for span in plan_steps(stages, 60)] == [(0, 20), (20, 40), (40, 60)]


def test_the_released_code_has_its_own_factors():
    official, paper = PRESETS["official"], PRESETS["paper"]
    assert [dict(stage.weights) for stage in official.neck] == [
        {"cross_entropy": 11.52 * 100},
        {"cross_entropy": 11.52, "distillation": 11.52 * 100},
        {"distillation": 11.52 * 100},
    ]
    assert (official.normalize_logits, official.post_layernorm_repeats) == (False, 2)
    assert (paper.normalize_logits, paper.post_layernorm_repeats) == (True, 1)


def test_distillation_alone_falls_as_a_cosine_before_the_codec_joins():
    stages = comneck_stages("d2", PRESETS["cosine"], lmbda=1.0)
    assert [(stage.name, stage.schedule, stage.learning_rate) for stage in stages] == [
        ("distill", "cosine", 1.0),
        ("joint", "cosine", 1.0),
        ("finish", "constant", 0.1),
    ]
    assert dict(stages[0].weights) == {"distillation": 100.0}


@pytest.mark.parametrize("name", ["cross-entropy", "distillation"])
def test_a_term_alone_has_the_learning_rates_of_the_papers_stages(name):
    """So that the ablation compares losses and not schedules."""
    term = name.replace("-", "_")
    for steps in (3, 300, 2000):
        expected = [
            span.stage.learning_rate
            for span in plan_steps(PRESETS["paper"].neck, steps)
            for _ in range(span.first, span.end)
        ]
        spans = plan_steps(PRESETS[name].neck, steps)
        assert [span.stage.learning_rate for span in spans for _ in range(span.first, span.end)] == expected
        assert all(set(span.stage.weights) == {term} for span in spans)
    paper = {stage.name: stage.weights for stage in PRESETS["paper"].neck}
    assert PRESETS[name].neck[0].weights[term] == paper["align"][term]


def test_unknown_presets_are_refused():
    assert find_preset(PRESETS, "paper") is PRESETS["paper"]
    with pytest.raises(ValueError, match=r"one of \['cosine', .*'paper'\], got 'papers'"):
        find_preset(PRESETS, "papers")


@pytest.mark.parametrize(("scenario", "codec", "terms"), [("d2", "codec", 3), ("d3", "encoder", 2)])
def test_joint_scenarios_train_neck_then_both_then_neck(scenario, codec, terms):
    stages = comneck_stages(scenario, PRESETS["paper"], lmbda=2.0)
    assert [stage.trains for stage in stages] == [("neck",)] * 3 + [("neck", codec), ("neck",)]
    joint = stages[3]
    assert len(joint.weights) == terms
    assert joint.weights["rate"] == 1.0 and joint.weights["distillation"] == 2.0
    if scenario == "d2":
        assert joint.weights["reconstruction"] == 60 * joint.weights["distillation"]
    assert stages[-1].weights == {"distillation": 100.0}
    assert sum(stage.share for stage in stages) == pytest.approx(1)


def test_a_codec_is_trained_with_noise_and_then_with_rounding():
    first, second = codec_stages(0.01)
    assert (first.quantization, second.quantization) == ("noise", "ste")
    assert first.weights == second.weights == {"rate": 1.0, "reconstruction": 0.01 * 255**2}


def test_unknown_scenarios_and_stages_are_refused():
    with pytest.raises(ValueError, match="must be 'd1', 'd2' or 'd3', got 'd4'"):
        comneck_stages("d4", PRESETS["paper"], lmbda=1.0)
    stages = comneck_stages("d2", PRESETS["paper"], lmbda=1.0)
    assert [stage.name for stage in choose_stages(stages, ["joint", "classify"])] == ["classify", "joint"]
    with pytest.raises(ValueError, match=r"no stage \['join'\].*'joint'"):
        choose_stages(stages, ["join"])


def test_steps_are_shared_without_a_rest_and_phases_change_with_the_parts():
    stages = (stage("a", "x", 1), stage("b", "x", 2), stage("c", "y", 0.001), stage("d", "x", 4))
    spans = plan_steps(stages, 70)
    assert [(span.first, span.end) for span in spans] == [(0, 10), (10, 30), (30, 31), (31, 70)]
    assert [span.phase for span in spans] == [0, 0, 1, 2]
    assert [span.end - span.first for span in plan_steps(stages, 4)] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="3 steps are too few for 4 stages"):
        plan_steps(stages, 3)
