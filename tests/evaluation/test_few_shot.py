"""Episodes, prompts with and without the query among the examples, and the choice of a label."""

import copy

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import comneck_hf
from comneck_hf.evaluation.baselines import Original
from comneck_hf.evaluation.few_shot import WAYS, Episode, FewShot, draw_episodes
from comneck_hf.evaluation.intervals import mean_of
from comneck_hf.evaluation.measurements import measure
from comneck_hf.training.llava import build_llava, llava_processor, train_tokenizer


NAMES = ("cup", "chair", "panda", "ant", "lamp", "pizza", "dolphin")


@pytest.fixture(scope="module")
def llava():
    clip = comneck_hf.pretrained("comneck-tiny-clip")
    processor = llava_processor(
        AutoImageProcessor.from_pretrained(clip), train_tokenizer([" ".join(NAMES)], vocab_size=320)
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return build_llava(CLIPModel.from_pretrained(clip), processor, **sizes).eval(), processor


def test_episodes_show_five_classes_and_ask_about_another_picture_of_one():
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6] * 3 + [6])
    episodes = draw_episodes(labels, NAMES, count=200)
    for episode in episodes:
        assert len(set(episode.labels[:WAYS])) == WAYS and episode.labels[WAYS] in episode.labels[:WAYS]
        assert len(set(episode.pictures)) == WAYS + 1
        assert [NAMES[labels[number]] for number in episode.pictures] == list(episode.labels)
    assert {episode.labels[:WAYS].index(episode.labels[WAYS]) for episode in episodes} == set(range(WAYS))
    assert draw_episodes(labels, NAMES, count=200) == episodes


def test_prompts_beyond_the_context_are_refused(llava, pictures):
    model, processor = copy.deepcopy(llava[0]), llava[1]
    model.config.text_config.max_position_embeddings = 100
    images = (pictures * 255).round().to(torch.uint8)
    episode = Episode((0, 1, 2, 3, 4, 5), ("cup", "chair", "panda", "ant", "lamp", "panda"))
    with pytest.raises(ValueError, match="this language model takes 100"):
        measure(Original(), FewShot(model, processor, images, [episode]), progress=False)


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="there are 4"):
        draw_episodes(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 5]), NAMES, count=1)


@pytest.mark.parametrize("is_leaky", [False, True])
def test_only_the_leaky_prompt_shows_the_query_with_its_label(llava, pictures, is_leaky):
    episode = Episode((0, 1, 2, 3, 4, 5), ("cup", "chair", "panda", "ant", "lamp", "panda"))
    images = (pictures * 255).round().to(torch.uint8)
    prompt = FewShot(*llava, images, [episode], is_leaky=is_leaky).prompt(episode)
    assert prompt.count("<image>") == WAYS + 1 + is_leaky
    assert prompt.count("Output: panda") == 1 + is_leaky
    assert prompt.startswith("For each of the following inputs, the output is one of [ant, chair, cup, lamp, panda].")
    assert prompt.endswith("Input: <image>\nOutput:")


@torch.no_grad()
@pytest.mark.parametrize("is_leaky", [False, True])
def test_the_likeliest_label_is_chosen(llava, pictures, is_leaky):
    """Against a computation that writes every label behind the prompt, with the model's own loss."""
    model, processor = llava
    images = (pictures * 255).round().to(torch.uint8)
    classes = ("cup", "chair", "panda", "ant", "lamp")
    episodes = [Episode((0, 1, 2, 3, 4, 5), (*classes, query)) for query in classes]
    task = FewShot(model, processor, images, episodes, is_leaky=is_leaky)
    columns = measure(Original(), task, batch_size=7, progress=False)
    found = columns["accuracy"]
    assert found[1].tolist() == [1] * 5
    assert columns["answers_seconds"][1].tolist() == [1] * 5  # of an episode
    if not is_leaky:
        assert mean_of(found) == 20  # the query's label is not in the prompt, so one answer fits one of the five
    received = Original().receive(task.pictures[:6])
    features = task.features(Original(), received)
    features = [*features, features[WAYS]] if is_leaky else features
    for number, episode in enumerate(episodes):
        text = task.prompt(episode).replace("<image>", "<image>" * len(features[0]))
        losses = []
        for label in classes:
            ids = processor.tokenizer(f"{text} {label}", return_tensors="pt").input_ids
            start = processor.tokenizer(text, return_tensors="pt").input_ids.shape[1]
            labels = ids.masked_fill(torch.arange(ids.shape[1]) < start, -100)
            outputs = BaseModelOutputWithPooling(pooler_output=features)
            losses.append(model(input_ids=ids, labels=labels, mm_encoder_outputs={"image": outputs}).loss.item())
        chosen = classes[losses.index(min(losses))]
        assert found[0, number] == 100 * (chosen == episode.labels[WAYS])


@torch.no_grad()
def test_prompts_begin_with_the_start_token_that_the_llava_was_trained_with(pictures):
    folder = comneck_hf.pretrained("comneck-tiny-llava")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    episode = Episode((0, 1, 2, 3, 4, 5), ("cup", "chair", "panda", "ant", "lamp", "panda"))
    task = FewShot(model, processor, (pictures * 255).round().to(torch.uint8), [episode])
    seen = []
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["input_ids"][0]), with_kwargs=True
    )
    task.score(Original(), Original().receive(task.pictures), range(6))
    start = processor.tokenizer.bos_token_id
    assert len(seen) == WAYS
    for input_ids in seen:
        assert input_ids[0] == start and (input_ids == start).sum() == 1
