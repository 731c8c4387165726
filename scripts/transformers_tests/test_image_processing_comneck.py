"""Our image processors under transformers' own mixin; placed in its `tests/models/comneck` to run."""

import unittest

from comneck_hf import ComNeckImageProcessor, ComNeckImageProcessorPil

from ...test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class ComNeckImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # transformers finds the classes of its own models by the name of this folder
        return {"torchvision": ComNeckImageProcessor, "pil": ComNeckImageProcessorPil}


class ComNeckImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ComNeckImageProcessingTester
