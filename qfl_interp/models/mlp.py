"""The homogeneous network with TransformerLens hook points, and the same network reading token ids.

Activation and widths are the source's [A], multipliers and initial weights ours [R]; see `config`.

Hidden layer `i` (from 0) is block `i`; the stream between two layers stands for the residual stream:

| hook point | `Site` | holds |
| --- | --- | --- |
| `blocks.{i}.hook_resid_pre` | `Site(i, "resid_pre")` | `X_i`, what layer i reads |
| `blocks.{i}.mlp.hook_pre` | `Site(i, "mlp_pre")` | `Z_{i+1}` |
| `blocks.{i}.mlp.hook_post` | `Site(i, "mlp_post")` | `X_{i+1} = phi(Z_{i+1})` |
| `blocks.{i}.hook_resid_post` | `Site(i, "resid_post")` | `X_{i+1}` again, after changes at `mlp_post` |
| `hook_logits` | `Site(None, "hook_logits")` | the output |
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qfl_interp.data.task import Batch
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.tl_version import HookedRootModule, HookPoint
from qfl_interp.seeding import torch_generator

# Weights, their gradient, the step, the initial weights, and what a solver for the sharpness keeps at least.
_COPIES = 8


class _Linear(nn.Module):
    """`alpha x W'`."""

    def __init__(self, d_in: int, d_out: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.W = nn.Parameter(torch.zeros(d_out, d_in))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The preactivations."""
        return self.alpha * (x @ self.W.mT)


class _HiddenLayer(_Linear):
    """`phi(alpha x W')` with `phi(s) = a s + b |s|`, whose derivative at 0 is a."""

    def __init__(self, d_in: int, d_out: int, alpha: float, slopes: tuple[float, float]) -> None:
        super().__init__(d_in, d_out, alpha)
        self.slopes = slopes
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The features."""
        z = self.hook_pre(super().forward(x))
        a, b = self.slopes
        return self.hook_post(a * z + b * z.abs())


class _Block(nn.Module):
    """A hidden layer between two hook points of the stream."""

    def __init__(self, d_in: int, d_out: int, alpha: float, slopes: tuple[float, float]) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.mlp = _HiddenLayer(d_in, d_out, alpha, slopes)
        self.hook_resid_post = HookPoint()

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The next layer's input."""
        return self.hook_resid_post(self.mlp(self.hook_resid_pre(x)))


class HomogeneousMLP(HookedRootModule):
    """A positively homogeneous network without biases: `[..., d_in]` floats to `[..., d_out]`.

    The output is 1-homogeneous in the input and in each weight matrix alone.

    Args:
        config: Shape and activation.
        seed: Decides the initial weights, N(0, 1) each; the global generators are not touched.

    Raises:
        QflError: The widths need more memory than is free; nothing was allocated.
    """

    def __init__(self, config: MLPConfig, *, seed: int = 0) -> None:
        super().__init__()
        needed = _COPIES * 4 * config.size
        what = f"the {config.size:,} weights of widths {config.widths}"
        require_memory(needed, available_bytes(), what, "Take a smaller width, depth or width_exponent.")
        self.cfg = config
        widths, alphas = config.widths, config.multipliers
        self.blocks = nn.ModuleList(
            _Block(widths[i], widths[i + 1], alphas[i], config.slopes) for i in range(config.n_layers)
        )
        self.unembed = _Linear(widths[-2], widths[-1], alphas[-1])
        self.hook_logits = HookPoint()
        rng = torch_generator(seed, "init")
        with torch.no_grad():
            for weight in self.weights:
                weight.normal_(generator=rng)
        self.setup()

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """`W_1 .. W_depth`, the parameters themselves, each `[m_k, m_{k-1}]`."""
        return tuple(self.parameters())

    def forward(self, inputs: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The outputs."""
        x = inputs
        for block in self.blocks:
            x = block(x)
        return self.hook_logits(self.unembed(x))


class SampleReader(HookedRootModule):
    """A network that reads token ids: the first token of a row is a sample's number, seen at every position.

    With it what takes token ids in this library (probes, patching, ablation, scoring) runs on a network whose input
    is one vector: activations are `[batch, pos, d]`, the same at every position. Weights and hook points are the
    network's own.

    Args:
        model: The network; it can still be called with vectors.
        samples: The inputs that ids stand for; `show` gives them later.

    Raises:
        ValueError: The samples are not as wide as the network's input.
    """

    def __init__(self, model: HomogeneousMLP, samples: Float[Tensor, "sample d_in"] | None = None) -> None:
        super().__init__()
        self.cfg = model.cfg
        self.blocks, self.unembed, self.hook_logits = model.blocks, model.unembed, model.hook_logits
        self.samples: Tensor
        self.register_buffer("samples", torch.zeros(0, model.cfg.d_in, dtype=model.weights[0].dtype), persistent=False)
        self.setup()
        if samples is not None:
            self.show(samples)

    def show(self, samples: Float[Tensor, "sample d_in"]) -> None:
        """Let ids stand for these samples. Raises `ValueError` where they are not as wide as the network's input."""
        if samples.shape[1] != self.cfg.d_in:
            raise ValueError(f"samples must have d_in = {self.cfg.d_in} columns, got {samples.shape[1]}.")
        self.samples = samples.to(self.samples)

    @property
    def widest(self) -> int:
        """What spans of activations are filled up to with zeros: layers differ in width."""
        return max(self.cfg.widths[:-1])

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """`W_1 .. W_depth`, the parameters themselves."""
        return tuple(self.parameters())

    def forward(self, tokens: Int[Tensor, "batch pos"] | Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The outputs, the same at every position of a row; of vectors, their own."""
        if tokens.is_floating_point():
            return HomogeneousMLP.forward(self, tokens)  # pyright: ignore[reportArgumentType]
        seen = self.samples[tokens[:, :1]].expand(-1, tokens.shape[1], -1)
        return HomogeneousMLP.forward(self, seen)  # pyright: ignore[reportArgumentType]  # the same modules


def sample_tokens(labels: Int[Tensor, " sample"]) -> Batch:
    """Rows `[sample number, label]` for a `SampleReader`; every score is one of the label: classification.

    Args:
        labels: Class of each sample.
    """
    tokens = torch.stack([torch.arange(len(labels)), labels], dim=1)
    return Batch(tokens, torch.tensor([False, True]).repeat(len(labels), 1), prompt_end=False)
