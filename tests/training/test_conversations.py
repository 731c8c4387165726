"""Conversations: what a batch holds, where the labels are, and how data sets are read."""

import datasets
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.conversations import (
    ConversationCollator,
    ConversationRows,
    PictureQuestions,
    QuestionPack,
    conversation,
    load_questions,
    naming_pack,
)
from comneck_hf.training.data import load_pack
from comneck_hf.training.llava import llava_processor, train_tokenizer


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_tokenizer(["what is this? a red circle", "what color is it? teal"] * 3, vocab_size=300)
    pictures = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56)
    made = llava_processor(pictures, tokenizer)
    made.patch_size = 14
    return made


def rows_of(*turns):
    return [{"messages": conversation(one), "images": [Image.new("RGB", (56, 56))]} for one in turns]


def test_labels_are_the_words_of_the_assistant_and_the_end_of_its_turn(processor):
    turns = [[("what is this?", "a red circle"), ("what color is it?", "teal")], [("what?", "red")]]
    batch = ConversationCollator(processor)(rows_of(*turns))
    assert batch["pixel_values"].shape == (2, 3, 56, 56)
    spoken = [row[row != -100] for row in batch["labels"]]
    assert [processor.tokenizer.decode(row) for row in spoken] == [" a red circle</s> teal</s>", " red</s>"]
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [16, 16]
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist(), reverse=True)
    text = processor.tokenizer.decode(batch["input_ids"][1][batch["attention_mask"][1].bool()])
    assert text == "<s>USER: " + "<image>" * 16 + " what? ASSISTANT: red</s>"


def test_rows_without_pictures_can_stand_between_others(processor):
    rows = rows_of([("what is this?", "teal")])
    rows.append({"messages": conversation([("what?", "red")], has_image=False), "images": []})
    batch = ConversationCollator(processor)(rows)
    assert batch["pixel_values"].shape[0] == 1
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [16, 0]


def test_a_question_alone_ends_where_the_answer_begins(processor):
    messages = conversation([("what is this?", None)])
    assert processor.apply_chat_template(messages) == "<s>USER: <image> what is this? ASSISTANT:"


def test_a_template_that_does_not_mark_the_assistant_is_refused(processor):
    template = processor.chat_template
    try:
        processor.chat_template = "{{ messages }}"
        with pytest.raises(ValueError, match="does not mark the assistant's words"):
            ConversationCollator(processor)
    finally:
        processor.chat_template = template
    with pytest.raises(ValueError, match="no word of the assistant"):
        ConversationCollator(processor)(rows_of([("what?", None)]))


def test_both_formats_of_conversations_are_read(processor):
    picture = Image.new("L", (56, 56))
    llava = datasets.Dataset.from_dict(
        {
            "image": [picture, None],
            "conversations": [
                [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}],
                [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "teal"}],
            ],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            }
        ),
    )
    first, second = ConversationRows(llava)
    assert first["messages"] == conversation([("what?", "red")])
    assert first["images"][0].mode == "RGB"
    assert second == {"messages": conversation([("what?", "teal")], has_image=False), "images": []}
    same = datasets.Dataset.from_dict({"messages": [conversation([("what?", "red")])], "images": [[]]})
    assert len(ConversationRows(same)) == 1
    with pytest.raises(ValueError, match="it has \\['text'\\]"):
        ConversationRows(datasets.Dataset.from_dict({"text": ["a"]}))
    wrong = datasets.Dataset.from_dict({"conversations": [[{"from": "system", "value": "x"}]]})
    with pytest.raises(ValueError, match="from 'system'"):
        ConversationRows(wrong)[0]


def test_packs_become_questions(data_folder, shapes_folder):
    names = naming_pack(load_pack(data_folder, "train"), augmentation=Augmentation(128, jitter=0.2))
    shapes = load_questions(shapes_folder, "train", size=128, max_turns=2)
    questions = PictureQuestions([names, shapes], seed=3)
    assert len(questions) == 16 + 8
    assert questions[0]["images"][0].shape == (3, 128, 128)
    asked = {question for row in map(questions.__getitem__, range(16)) for question in _questions(row)}
    assert len(asked) > 4
    assert set(_answers(questions[16])) == {"circle", "red"}
    again, other = PictureQuestions([names, shapes], seed=3), PictureQuestions([names, shapes], seed=3)
    other.set_epoch(1)
    assert again[4]["messages"] == questions[4]["messages"]
    assert torch.equal(again[4]["images"][0], questions[4]["images"][0])
    assert not torch.equal(other[4]["images"][0], questions[4]["images"][0])
    assert any("colour" in text for text in questions.texts())


def test_drawn_pictures_keep_their_colors():
    pack = QuestionPack(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), [[("what?", "gray")]])
    assert torch.equal(PictureQuestions([pack])[0]["images"][0], pack.images[0])


def test_the_tokenizer_spells_what_it_never_saw(processor):
    text = "Zażółć gęślą jaźń 123?"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def _questions(row):
    return [part["text"] for m in row["messages"] if m["role"] == "user" for part in m["content"] if "text" in part]


def _answers(row):
    return [part["text"] for m in row["messages"] if m["role"] == "assistant" for part in m["content"]]


def test_rare_answers_are_asked_for_as_often_as_others():
    turns = [(f"is there a {color} shape?", "no") for color in ("blue", "green", "teal", "gray", "black", "brown")]
    turns.append(("is there a red shape?", "yes"))
    pack = QuestionPack(torch.zeros(50, 3, 8, 8, dtype=torch.uint8), [turns] * 50, max_turns=2)
    rows = [row["messages"] for row in PictureQuestions([pack], seed=0)]
    answers = [[message["content"][0]["text"] for message in row[1::2]] for row in rows]
    assert all(sorted(row) == ["no", "yes"] for row in answers)
    assert {row[0] for row in answers} == {"no", "yes"}
    asked = {message["content"][-1]["text"].lower().rstrip("?") for row in rows for message in row[::2]}
    assert len(asked) == 7
