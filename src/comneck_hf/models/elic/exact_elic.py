"""ELIC's entropy networks in integers: symbols and table indexes from latents, latents from symbols.

Fixed-point formats: means and `y_hat` in units of 1/64, scales in units of 1/1024 (compared with integer thresholds).
Rows of the latent grid are ordered by pass: the anchors of all pictures, then the non-anchors of all pictures.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...coding.exact import (
    ExactConv,
    ExactUpsample,
    Requantizer,
    requantize,
    resolve_executor,
)
from ...coding.tables import MAX_VALUE, SCALE_TABLE, CodingTables, ideal_bits
from .configuration_elic import ElicConfig
from .gains_elic import MEAN_UNIT, Quantizer, quantizers
from .grids_elic import GridTables, grid_tables
from .layers_elic import support_groups


if TYPE_CHECKING:
    from ...coding.rans import TableCoder

SCALE_UNIT = 1024

# (group, pass, means, scales in steps, quantizer) -> symbols; all int32 `(rows of one pass, channels of the group)`
CodePass = Callable[[int, int, torch.Tensor, torch.Tensor, Quantizer], torch.Tensor]


@dataclass(frozen=True)
class EncodedLatents:
    """What the encoder decided for a batch.

    Attributes:
        latents: `y_hat`, float32 `(batch, latent_channels, height, width)`.
        deviations: `y` minus the predicted means in steps of the quantizer, same shape; the symbols before rounding.
        scales: Predicted standard deviations in the same steps, same shape.
        symbols: int16 `(batch, symbols)` on the CPU: z, then every group's anchors and non-anchors.
        indexes: int16, same shape: the table of each symbol.
    """

    latents: torch.Tensor
    deviations: torch.Tensor
    scales: torch.Tensor
    symbols: torch.Tensor
    indexes: torch.Tensor


@dataclass(frozen=True)
class PreparedCoder:
    """The table coder and the scale lookup of one state of the buffers.

    Attributes:
        key: Identity and version of every buffer.
        coder: Codes with the tables.
        fingerprint: 32-bit digest of the codec's type and of the buffers.
        lookup: uint8, table index of each scale up to the last threshold.
    """

    key: tuple[tuple[int, int], ...]
    coder: "TableCoder"
    fingerprint: int
    lookup: torch.Tensor


class CodingTableBuffers(nn.Module):
    """The integer CDF tables as buffers whose size follows what is loaded."""

    cdfs: torch.Tensor
    lengths: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, num_tables: int, size: int) -> None:
        super().__init__()
        self.register_buffer("cdfs", torch.zeros(size, dtype=torch.int32))
        self.register_buffer("lengths", torch.zeros(num_tables, dtype=torch.int32))
        self.register_buffer("offsets", torch.zeros(num_tables, dtype=torch.int32))

    def tables(self) -> CodingTables:
        """The tables on the CPU, not validated."""
        return CodingTables(self.cdfs.cpu(), self.lengths.cpu(), self.offsets.cpu())

    def set(self, tables: CodingTables) -> None:
        """Replaces the tables."""
        device = self.cdfs.device
        self.cdfs = tables.cdfs.to(device)
        self.lengths = tables.lengths.to(device)
        self.offsets = tables.offsets.to(device)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        cdfs = state_dict.get(prefix + "cdfs")
        if cdfs is not None and cdfs.shape != self.cdfs.shape:
            self.cdfs = torch.zeros_like(cdfs, device=self.cdfs.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ExactElic(nn.Module):
    """Integer twin of h_s, the context networks and the parameter aggregation of [`ElicModel`].

    Args:
        config: The codec's configuration.
    """

    def __init__(self, config: ElicConfig) -> None:
        super().__init__()
        self.config = config
        self.executor: str | None = None
        hidden, latent, kernel = config.hidden_channels, config.latent_channels, config.kernel_size
        groups, taps = list(config.group_channels), kernel * kernel
        self.z_input = Requantizer(hidden)
        self.y_input = Requantizer(latent)
        self.h_s = nn.ModuleList(
            [
                ExactUpsample(hidden, hidden, kernel),
                ExactUpsample(hidden, hidden * 3 // 2, kernel),
                ExactConv(hidden * 3 // 2, 2 * latent, 9),
            ]
        )
        first, second = config.context_channels
        self.channel_contexts = nn.ModuleList(
            nn.ModuleList(
                [
                    ExactConv(sum(groups[i] for i in support_groups(k)), first, taps),
                    ExactConv(first, second, taps),
                    ExactConv(second, 2 * groups[k], taps),
                ]
            )
            for k in range(1, len(groups))
        )
        self.spatial_contexts = nn.ModuleList(ExactConv(size, 2 * size, taps // 2) for size in groups)
        first, second = config.aggregation_channels
        self.parameter_aggregations = nn.ModuleList(
            nn.ModuleList(
                [
                    ExactConv(2 * latent + (2 if k == 0 else 4) * size, first, 1),
                    ExactConv(first, second, 1),
                    ExactConv(second, 2 * size, 1, wide=True),
                ]
            )
            for k, size in enumerate(groups)
        )
        self.tables = CodingTableBuffers(len(SCALE_TABLE) + hidden, config.coding_table_size)
        self.register_buffer("thresholds", torch.zeros(len(SCALE_TABLE) - 1, dtype=torch.int32))
        self._grids: dict[tuple[object, ...], GridTables] = {}
        self._prepared: PreparedCoder | None = None

    @property
    def is_derived(self) -> bool:
        """Whether the integers have been derived or loaded."""
        return self.tables.cdfs.numel() > 1 and bool(self.tables.lengths.any())

    # --- what coding needs, prepared once -------------------------------------------------------------------------

    def _prepare(self) -> PreparedCoder:
        """What coding needs besides the networks; made anew when a buffer changed."""
        key = tuple((buffer.data_ptr(), buffer._version) for buffer in self.buffers())
        if self._prepared is None or self._prepared.key != key:
            from ...coding.rans import TableCoder

            # Other codecs put other pictures into the same latents: equal integers do not make them readers of ELIC's.
            family = "" if self.config.model_type == "elic" else self.config.model_type
            digest = hashlib.blake2s(family.encode(), digest_size=4)
            for name, buffer in self.named_buffers():
                digest.update(f"{name}{tuple(buffer.shape)}{buffer.dtype}".encode())
                digest.update(buffer.cpu().numpy().tobytes())
            steps = torch.arange(int(self.thresholds[-1]) + 2, dtype=torch.int32)
            self._prepared = PreparedCoder(
                key=key,
                coder=TableCoder(self.tables.tables()),
                fingerprint=int.from_bytes(digest.digest(), "little"),
                lookup=torch.bucketize(steps, self.thresholds.cpu()).to(torch.uint8),
            )
        return self._prepared

    @property
    def fingerprint(self) -> int:
        """32-bit digest of the codec's type and of every integer that decides a bitstream."""
        return self._prepare().fingerprint

    def _grid(self, batch: int, height: int, width: int, device: torch.device) -> GridTables:
        key = (batch, height, width, device)
        if key not in self._grids:
            if len(self._grids) >= 16:
                self._grids.pop(next(iter(self._grids)))
            self._grids[key] = grid_tables(batch, height, width, self.config.kernel_size).to(device)
        return self._grids[key]

    # --- the networks ---------------------------------------------------------------------------------------------

    def _walk(
        self, z_symbols: torch.Tensor, height: int, width: int, gains: torch.Tensor | None, code: CodePass
    ) -> torch.Tensor:
        """Runs all groups and passes in coding order.

        Args:
            z_symbols: int32 `(batch, height / 4 * width / 4, hidden_channels)`.
            height, width: Latent size.
            gains: As in `encode`.
            code: Supplies the symbols of each pass, given its integer means, scales and quantizer.

        Returns:
            `y_hat` in units of 1/64: int32 `(batch, latent_channels, height, width)`.
        """
        device, sizes = z_symbols.device, list(self.config.group_channels)
        executor = resolve_executor(self.executor, device)
        grid = self._grid(len(z_symbols), height, width, device)
        passes = quantizers(gains, grid.rows)
        hyper = self.z_input(z_symbols.flatten(0, 1))
        for layer, tables in zip(self.h_s, grid.h_s, strict=True):
            hyper = layer(hyper, tables, executor)
        y_hat = torch.empty(len(hyper), sum(sizes), dtype=torch.int32, device=device)
        activations: list[torch.Tensor] = []
        for k, size in enumerate(sizes):
            shared = [hyper]
            if k:
                context = torch.cat([activations[i] for i in support_groups(k)], 1)
                for layer in self.channel_contexts[k - 1]:
                    context = layer(context, grid.context, executor)
                shared.insert(0, context)
            group = slice(sum(sizes[:k]), sum(sizes[: k + 1]))
            values = self._walk_group(k, group, shared, grid, passes, code, executor)
            y_hat[:, group] = values
            activations.append(self._activate(values, group))
        return y_hat[grid.rows].permute(0, 3, 1, 2).contiguous()

    def _walk_group(
        self,
        k: int,
        group: slice,
        shared: list[torch.Tensor],
        grid: GridTables,
        passes: tuple[Quantizer, Quantizer],
        code: CodePass,
        executor: str,
    ) -> torch.Tensor:
        """Anchors, then non-anchors of one group; returns its `y_hat` rows in units of 1/64."""
        size = group.stop - group.start
        half = len(shared[0]) // 2
        first, second, third = self.parameter_aggregations[k]
        # Anchors have no spatial context: the activation that stands for zero.
        spatial = first.padding[: 2 * size].expand(half, -1)
        decoded = []
        for number, quantizer in enumerate(passes):
            inputs = torch.cat([spatial, *(part[number * half : (number + 1) * half] for part in shared)], 1)
            parameters = third(second(first(inputs, None, executor), None, executor), None, executor)
            means = parameters[:, :size].contiguous()
            symbols = code(k, number, means, quantizer.relative(parameters[:, size:].contiguous()), quantizer)
            decoded.append(quantizer.dequantize(symbols) + means)
            if number == 0:
                spatial = self.spatial_contexts[k](self._activate(decoded[0], group), grid.spatial, executor)
        return torch.cat(decoded)

    def _activate(self, values: torch.Tensor, group: slice) -> torch.Tensor:
        parts = (self.y_input.multiplier, self.y_input.offset, self.y_input.shift)
        return requantize(values, *(part[group] for part in parts))

    def _indexes(self, scales: torch.Tensor, lookup: torch.Tensor) -> torch.Tensor:
        """Table index of each scale: the first level that is not smaller. uint8 on the CPU."""
        if scales.device.type != "cpu":
            return torch.bucketize(scales, self.thresholds).to(torch.uint8).cpu()
        from ...coding.kernels import lookup_indexes

        indexes = torch.empty(scales.shape, dtype=torch.uint8)
        lookup_indexes(scales.numpy(), lookup.numpy(), indexes.numpy())
        return indexes

    def _z_indexes(self, batch: int, positions: int) -> torch.Tensor:
        channels = torch.arange(self.config.hidden_channels, dtype=torch.int16) + len(SCALE_TABLE)
        return channels.repeat(positions).expand(batch, -1)

    # --- coding ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, y: torch.Tensor, z_symbols: torch.Tensor, gains: torch.Tensor | None = None) -> EncodedLatents:
        """Quantizes latents around the integer means.

        Args:
            y: Float `(batch, latent_channels, height, width)`.
            z_symbols: Quantized hyper-latents relative to the medians, integer-valued, `(batch, hidden_channels,
                height / 4, width / 4)`.
            gains: int64 `(batch, height, width)`, of the quantizer, in 1/64 octaves; `None` for 0.
        """
        batch, _, height, width = y.shape
        z_rows = z_symbols.flatten(2).transpose(1, 2).clamp(-MAX_VALUE, MAX_VALUE).to(torch.int32).contiguous()
        grid, lookup = self._grid(batch, height, width, y.device), self._prepare().lookup
        y_rows = torch.empty(grid.rows.numel(), y.shape[1], device=y.device)
        y_rows[grid.rows.flatten()] = y.float().permute(0, 2, 3, 1).flatten(0, 2)
        half = len(y_rows) // 2
        sizes = list(self.config.group_channels)
        symbols = [z_rows.reshape(batch, -1).to("cpu", torch.int16)]
        indexes = [self._z_indexes(batch, z_rows.shape[1])]
        deviation_rows, scale_rows = torch.empty_like(y_rows), torch.empty_like(y_rows)

        def code(k: int, number: int, means: torch.Tensor, scales: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
            """Chooses the symbols of a pass, and keeps what a bitstream and its estimates need."""
            block = (slice(number * half, (number + 1) * half), slice(sum(sizes[:k]), sum(sizes[: k + 1])))
            deviations = quantizer.in_steps(y_rows[block] - means / MEAN_UNIT)
            chosen = deviations.round().clamp(-MAX_VALUE, MAX_VALUE).to(torch.int32)
            symbols.append(chosen.view(batch, -1).to("cpu", torch.int16))
            indexes.append(self._indexes(scales, lookup).view(batch, -1))
            deviation_rows[block] = deviations
            scale_rows[block] = scales / SCALE_UNIT
            return chosen

        with torch.autocast(y.device.type, enabled=False):
            y_hat = self._walk(z_rows, height, width, gains, code)
        return EncodedLatents(
            latents=y_hat.float() / MEAN_UNIT,
            deviations=deviation_rows[grid.rows].permute(0, 3, 1, 2),
            scales=scale_rows[grid.rows].permute(0, 3, 1, 2),
            symbols=torch.cat(symbols, 1),
            indexes=torch.cat([part.to(torch.int16) for part in indexes], 1),
        )

    def pack(self, encoded: EncodedLatents) -> list[bytes]:
        """Entropy codes each picture of a batch into a payload of its own."""
        return self._prepare().coder.encode(encoded.symbols.numpy(), encoded.indexes.numpy())

    def cost(self, deviations: torch.Tensor, scales: torch.Tensor) -> float:
        """Ideal code length of a picture's y in bits; both as in `EncodedLatents`, without the batch."""
        symbols = deviations.round().clamp(-MAX_VALUE, MAX_VALUE)
        indexes = torch.bucketize((scales * SCALE_UNIT).contiguous(), self.thresholds)
        return ideal_bits(symbols.cpu().numpy(), indexes.cpu().numpy(), self.tables.tables())

    @torch.no_grad()
    def decode(
        self, payloads: list[bytes], height: int, width: int, gains: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents of pictures of one size and their gains: float32 `(batch, latent_channels, height, width)`.

        Raises:
            BitstreamError: If a payload is damaged.
        """
        device, batch = self.thresholds.device, len(payloads)
        prepared = self._prepare()
        decoder = prepared.coder.decoder(payloads)
        positions = (height // 4) * (width // 4)
        z_rows = torch.from_numpy(decoder.decode(self._z_indexes(batch, positions).numpy()))

        def code(k: int, number: int, means: torch.Tensor, scales: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
            """Reads the symbols of a pass."""
            indexes = self._indexes(scales, prepared.lookup)
            decoded = torch.from_numpy(decoder.decode(indexes.view(batch, -1).numpy()))
            return decoded.view(scales.shape).to(device, torch.int32)

        with torch.autocast(device.type, enabled=False):
            y_hat = self._walk(z_rows.view(batch, positions, -1).to(device, torch.int32), height, width, gains, code)
        decoder.finish()
        return y_hat.float() / MEAN_UNIT


__all__ = ["SCALE_UNIT", "EncodedLatents", "ExactElic"]
