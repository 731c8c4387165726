from comneck_hf.evaluation.cotam_speed import cotam_speed
from comneck_hf.models.cotam.modeling_cotam import CotamModel


def test_what_guide_and_adapter_cost_is_told_apart(model, clip, pictures):
    cotam = CotamModel.from_codec_and_clip(model.codec, clip).eval()
    seen = []
    cotam.vision_model.adapter.register_forward_hook(lambda *_: seen.append("adapter"))
    cotam.vision_model.encoder.layers[2].register_forward_hook(lambda *_: seen.append("layer"))
    report = cotam_speed(cotam, pictures[:2], repeats=2)
    assert seen == ["adapter"] * 3  # once in every round, the first of which is not counted; CLIP's layers never
    times, overhead = report["ms_per_picture"], report["overhead_percent"]
    assert overhead["encode"] == 100 * (times["encode, guided"] / times["encode"] - 1)
    together = times["encode, guided"] + times["decode, adapter"]
    assert abs(overhead["total"] - 100 * (together / (times["encode"] + times["decode"]) - 1)) < 1e-9
