"""A LLaVA around the packaged CLIP, with a random language model and a processor of its own."""

import pytest
import torch
from PIL import Image
from skimage import data
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from comneck_hf import CotamModel, pretrained


WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "USER:",
    "ASSISTANT:",
    "what",
    "is",
    "this",
    "?",
    "a",
    "cat",
    "<video>",
]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@pytest.fixture(scope="session")
def clip():
    return CLIPModel.from_pretrained(pretrained("comneck-tiny-clip")).eval()


@pytest.fixture
def comneck():
    return AutoModel.from_pretrained(pretrained("comneck-tiny-d1-q2")).eval()


@pytest.fixture
def cotam(comneck, clip):
    """The packaged codec and CLIP with an adapter whose gate is open."""
    torch.manual_seed(0)
    model = CotamModel.from_codec_and_clip(comneck.codec, clip).eval()
    model.vision_model.adapter.gate.data.fill_(0.3)
    return model


@pytest.fixture(scope="session")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=["<image>"], padding_side="left", **special
    )


@pytest.fixture
def processor(tokenizer):
    """As a LLaVA on pixels has it."""
    pictures = CLIPImageProcessor.from_pretrained(pretrained("comneck-tiny-clip"))
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


@pytest.fixture
def next_processor(tokenizer):
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 112}, crop_size=112, image_grid_pinpoints=[[112, 224], [224, 112]]
    )
    return LlavaNextProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def text_config():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(vocab_size=len(WORDS), **sizes, **ids, initializer_range=0.3)


@pytest.fixture
def llava(clip):
    """Builds the models that have one picture, tiles, three layers per picture, or frames too."""

    def make(kind="llava", **options):
        torch.manual_seed(0)
        config_class, model_class, more = {
            "llava": (LlavaConfig, LlavaForConditionalGeneration, {"image_seq_length": 64}),
            "next": (
                LlavaNextConfig,
                LlavaNextForConditionalGeneration,
                {"image_grid_pinpoints": [[112, 224], [224, 112]]},
            ),
            "vip": (VipLlavaConfig, VipLlavaForConditionalGeneration, {"vision_feature_layers": [-2, -3, 3]}),
            "video": (
                VideoLlavaConfig,
                VideoLlavaForConditionalGeneration,
                {"image_seq_length": 64, "video_token_index": WORDS.index("<video>"), "video_seq_length": 2 * 65},
            ),
        }[kind]
        config = config_class(
            vision_config=clip.config.vision_config,
            text_config=text_config(),
            image_token_index=WORDS.index("<image>"),
            **{**more, **options},
        )
        model = model_class(config).eval()
        towers = ("image_tower", "video_tower") if kind == "video" else ("vision_tower",)
        for tower in towers:
            model.model.get_submodule(tower).load_state_dict(clip.vision_model.state_dict())
        return model

    return make


@pytest.fixture(scope="session")
def photos():
    return [Image.fromarray(picture()) for picture in (data.astronaut, data.cat, data.rocket)]
