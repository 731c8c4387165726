"""What is read from foreign files, and what is refused."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from comneck_hf.hub.checkpoints import fetch_file, read_checkpoint

from .authors_layout import checkpoint


PREFIXES = ("", "module.", "base_coder.", "module.base_coder.", "base_coder.module.")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_in_any_order_are_stripped(authors_files, tmp_path, prefix):
    codec = {f"{prefix}{key}": value for key, value in authors_files.codec.items()}
    neck = {f"{prefix}{key}": value for key, value in authors_files.neck.items()}
    read = read_checkpoint(authors_files.variant(tmp_path, checkpoint(codec, neck)))
    assert same(read.codec, authors_files.codec)
    assert same(read.neck, authors_files.neck)
    assert read.prefixes == ((prefix,) if prefix else ())
    assert set(read.ignored) == {"epoch", "optimizer", "lr_scheduler"}


def test_a_file_that_is_the_codec_itself_is_read(authors_files, tmp_path):
    read = read_checkpoint(authors_files.variant(tmp_path, authors_files.codec))
    assert read.neck is None
    assert same(read.codec, authors_files.codec)


def test_a_bare_codec_beside_the_neck_is_read(authors_files, tmp_path):
    content = {**authors_files.codec, "adapter": authors_files.neck, "epoch": 3}
    read = read_checkpoint(authors_files.variant(tmp_path, content))
    assert same(read.codec, authors_files.codec)
    assert same(read.neck, authors_files.neck)
    assert read.ignored == ("epoch",)


def test_a_name_that_is_there_with_and_without_prefix_is_refused(authors_files, tmp_path):
    codec = {**authors_files.codec, "module.g_a.0.bias": authors_files.codec["g_a.0.bias"]}
    with pytest.raises(ValueError, match=r"g_a\.0\.bias twice"):
        read_checkpoint(authors_files.variant(tmp_path, codec))


class Anything:
    """An object that is no tensor."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"hello world\n", "a file of another kind"),
        (b"epoch,loss\n1,2\n", "a file of another kind"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a file of another kind"),
        (b"PK\x03\x04" + bytes(99), "damaged or truncated"),
        (b"\x80\x02" + bytes(99), "damaged or truncated|Python objects"),
        ({"state_dict": torch.ones(3)}, "no dictionary of tensors under 'state_dict', but a Tensor"),
        ({"state_dict": {}, "adapter": torch.ones(3)}, "no dictionary of tensors under 'adapter'"),
        ({"state_dict": {3: torch.ones(3)}}, "no dictionary of tensors under 'state_dict'"),
        ({"state_dict": {}, "neck": {"a": torch.ones(1)}}, "holds weights under 'neck'"),
        ({"state_dict": Anything()}, "could run code and are not loaded"),
        (torch.nn.Linear(2, 2), "could run code and are not loaded"),
        ([1, 2], "holds a list"),
        ({"visual.conv1.weight": torch.ones(1)}, "looks like a CLIP"),
        ({"vision_model.embeddings.class_embedding": torch.ones(1)}, "looks like a CLIP"),
        (
            {"adapter": {}, "state_dict": {"trans_latent_dim.bias": torch.ones(1)}},
            "a transform-neck without its codec",
        ),
        ({"g_a.0.weight": torch.ones(1), "h_s.0.weight": torch.ones(1)}, "a codec without ELIC's contexts"),
        ({"context_prediction.weight": torch.ones(1)}, "another codec with a context model"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.ones(1)}, "a language model"),
        ({"something.weight": torch.ones(1)}, r"something with the tensors something\.weight"),
        ({"epoch": 3}, "a file without tensors"),
    ],
)
def test_another_file_is_refused_with_what_it_looks_like(tmp_path, content, message):
    path = tmp_path / "d1_1.pth.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(str(path))


def test_no_code_of_a_file_is_run(tmp_path):
    path, trace = tmp_path / "evil.pth.tar", tmp_path / "trace"
    torch.save({"state_dict": Touch(str(trace))}, path)
    with pytest.raises(ValueError, match="could run code"):
        read_checkpoint(str(path))
    assert not trace.exists()


class Touch:
    """Would write a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(authors_files, tmp_path, share):
    content = authors_files.checkpoint.read_bytes()
    path = tmp_path / "d1_1.pth.tar"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_checkpoint(str(path))


def test_a_truncated_file_of_the_older_format_is_refused(authors_files, tmp_path):
    path = tmp_path / "d1_1.pth.tar"
    torch.save(authors_files.codec, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for share in (0.001, 0.1, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="damaged or truncated|Python objects"):
            read_checkpoint(str(path))


def test_the_priors_newer_names_are_read_in_the_authors_layout(authors_files, tmp_path):
    newer = {"matrix": "matrices.", "bias": "biases.", "factor": "factors."}
    codec = {
        re.sub(r"\._(matrix|bias|factor)(\d)$", lambda match: f".{newer[match[1]]}{match[2]}", key): value
        for key, value in authors_files.codec.items()
    }
    assert "entropy_bottleneck.matrices.0" in codec
    assert same(read_checkpoint(authors_files.variant(tmp_path, codec)).codec, authors_files.codec)


def test_torchscript_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "ViT-L-14.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(ValueError, match="TorchScript program"):
        read_checkpoint(str(path))


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="There is no file"):
        read_checkpoint(str(tmp_path / "d1_1.pth.tar"))


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *args: object) -> None:
        """Says nothing."""


def test_a_url_is_downloaded_once(authors_files, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    handler = partial(QuietHandler, directory=str(authors_files.checkpoint.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/d2_3.pth.tar"
        assert same(read_checkpoint(url).codec, authors_files.codec)
        with pytest.raises(OSError, match=r"missing\.pth could not be downloaded.*404"):
            fetch_file(url.replace("d2_3.pth.tar", "missing.pth"))
        server.shutdown()
    assert same(read_checkpoint(url).codec, authors_files.codec)
