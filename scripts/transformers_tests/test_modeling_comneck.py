"""Our models under transformers' own modeling and training mixins; placed in its `tests/models/comneck` to run."""

import unittest

from torch import nn

from comneck_hf import ComNeckConfig, ComNeckModel, ComNeckVisionConfig, ComNeckVisionModel, ElicConfig, ElicModel

from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor
from ...test_training_mixin import TrainingTesterMixin


LATENT_CHANNELS, GRID = 16, 4
CODEC = {
    "hidden_channels": 8,
    "latent_channels": LATENT_CHANNELS,
    "group_channels": [2, 2, 4, 4, 4],
    "context_channels": [8, 8],
    "aggregation_channels": [8, 8],
}
TOWER = {
    "latent_channels": LATENT_CHANNELS,
    "num_skipped_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 14 * GRID,
    "patch_size": 14,
    "projection_dim": 32,
}


class Tester:
    """What the mixins ask of a model: a tiny configuration and inputs."""

    is_training = True
    batch_size = 4
    seq_length = GRID * GRID + 1
    encoder_seq_length = seq_length
    num_attention_heads = TOWER["num_attention_heads"]
    hidden_size = TOWER["hidden_size"]
    num_hidden_layers = TOWER["num_hidden_layers"]

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return ComNeckVisionConfig(**TOWER)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, LATENT_CHANNELS, GRID, GRID])}


class ComNeckTester(Tester):
    def get_config(self):
        return ComNeckConfig(codec_config=CODEC, vision_config=TOWER)


class ElicTester(Tester):
    def get_config(self):
        return ElicConfig(**CODEC)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, 64, 64])}


def with_loss(model_class):
    """The training mixins want a loss from the model itself; ours leave it to the training code."""

    class ModelWithLoss(model_class):
        def forward(self, pixel_values, **kwargs):
            outputs = super().forward(pixel_values, **kwargs)
            trained = {ElicModel: "reconstruction", ComNeckModel: "image_embeds"}.get(model_class, "pooler_output")
            outputs["loss"] = outputs[trained].square().mean()
            return outputs

    return ModelWithLoss


class ModelTest(ModelTesterMixin, TrainingTesterMixin):
    model_tester = None
    model_tester_class = Tester
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        (model_class,) = self.all_model_classes
        self.config_tester = ConfigTester(
            self, config_class=model_class.config_class, has_text_modality=False, common_properties=[]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_training(self):
        self.all_model_classes = tuple(map(with_loss, self.all_model_classes))
        super().test_training()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        self.all_model_classes = tuple(map(with_loss, self.all_model_classes))
        super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)


class TowerTest(ModelTest):
    def test_attention_outputs(self):
        """Skipped layers have hidden states, but no attention."""
        self.model_tester.num_hidden_layers -= TOWER["num_skipped_layers"]
        super().test_attention_outputs()

    def test_get_image_features_attentions(self):
        self.model_tester.num_hidden_layers -= TOWER["num_skipped_layers"]
        super().test_get_image_features_attentions()

    def test_model_get_set_embeddings(self):
        """As transformers' own vision tests: the first layer is no `nn.Embedding` and need not be one."""
        model = self.all_model_classes[0](self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), nn.Module)
        replacement = nn.Linear(3, 3)
        model.set_input_embeddings(replacement)
        self.assertIs(model.get_input_embeddings(), replacement)


class ComNeckVisionModelTest(TowerTest, unittest.TestCase):
    all_model_classes = (ComNeckVisionModel,)


class ComNeckModelTest(TowerTest, unittest.TestCase):
    all_model_classes = (ComNeckModel,)
    model_tester_class = ComNeckTester
    test_all_params_have_gradient = False  # the codec has none where latents are the input


class ElicModelTest(ModelTest, unittest.TestCase):
    all_model_classes = (ElicModel,)
    model_tester_class = ElicTester
    has_attentions = False
