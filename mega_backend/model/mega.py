"""MEGA: a masked generative autoencoder over mesh tokens, under any conditioning tokens or none.

One class serves the published models (image feature maps), their unconditional pretraining stage, and the bundled model
(33 landmarks, with a latent regressor underneath). Parameters carry the published names, so that the authors' weights
load by renaming alone. Source: "MEGA: Masked Generative Autoencoder for Human Mesh Recovery" (CVPR 2025).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from mega_backend.model import sampling
from mega_backend.model.conditioning import FEATURE_COUNT, LANDMARK_COUNT, LandmarkEmbedding
from mega_backend.model.prior import LandmarkRegressor, LatentHead
from mega_backend.model.sampling import Samples
from mega_backend.model.transformer import EPSILON, Block, sine_positions

DEFAULTS: dict[str, Any] = {
    "token_count": 54,
    "code_count": 512,
    "width": 1024,
    "encoder_depth": 12,
    "decoder_depth": 4,
    "heads": 4,
    "conditioning": None,
    "prior": None,
}
# Rows (samples) that go through the network together: enough to fill a device, bounded in memory.
ROWS = 256


class Condition(NamedTuple):
    """What one person's features say, computed once for all samples and steps.

    tokens (B, C, width); rotation_6d (B, 6); camera (B, 3) = s, tx, ty. With a landmark regressor also features
    (B, 33, 8), which it reads again beside known tokens, and what it says while none are known: latent and sureness
    (B, T, D).
    """

    tokens: torch.Tensor
    rotation_6d: torch.Tensor
    camera: torch.Tensor
    features: torch.Tensor | None = None
    latent: torch.Tensor | None = None
    sureness: torch.Tensor | None = None

    def select(self, persons: "torch.Tensor | slice") -> "Condition":
        """The persons with these indices (R,) long, repeated where an index is; or a slice of them."""
        return Condition(*(None if part is None else part[persons] for part in self))


class CodeEmbedding(nn.Module):
    """Tokens embedded where their codes lie, by a linear map for each place: near codes look alike from the start."""

    def __init__(self, token_count: int, latent_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(token_count, latent_size, width) / latent_size**0.5)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """latents (B, T, D) → (B, T, width)."""
        return torch.einsum("btd,tdw->btw", latents.to(self.weight.dtype), self.weight)


class Encoder(nn.Module):
    """Sees the visible tokens alone; rows may have different numbers of them.

    `proj` embeds them: codes by a table as published, or latents by a `CodeEmbedding`.
    """

    def __init__(self, token_count: int, proj: nn.Module, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(token_count, 1, width))
        self.proj = proj
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(width, eps=EPSILON)
        self._constant: tuple[Any, torch.Tensor] | None = None

    def _run(self, x: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
        for block in self.transformer:
            x = block(x, key_mask)
        return self.layer_norm(x)

    def empty(self) -> torch.Tensor:
        """What comes out when nothing is visible, (1, 1, width): a constant of the weights, kept between calls."""
        if torch.is_grad_enabled():
            return self._run(self.cls_token, None)
        dtype = torch.get_autocast_dtype(self.cls_token.device.type) if torch.is_autocast_enabled() else None
        key = (dtype, *((p.data_ptr(), p._version, p.dtype) for p in self.parameters()))
        if self._constant is None or self._constant[0] != key:
            self._constant = (key, self._run(self.cls_token, None))
        return self._constant[1]

    def forward(self, tokens: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens (B, T) or latents (B, T, D), visible (B, T) → (cls (B, 1, w), packed (B, N, w), places (B, N)).

        N is the largest number of visible places in any row. A row with fewer than N visible tokens is padded with
        invisible places; their outputs mean nothing.
        """
        batch = len(tokens)
        counts = visible.sum(1)
        most = int(counts.max()) if batch else 0
        # Visible places first, in order; attention does not care about the order, packing saves the masked ones' cost.
        places = (~visible).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        if most == 0:
            cls = self.empty().expand(batch, -1, -1)
            return cls, cls[:, :0], places
        embedded = self.proj(tokens) + self.pos_embedding[:, 0]
        x = embedded.gather(1, places[..., None].expand(-1, -1, embedded.shape[-1]))
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1)
        key_mask = None
        if int(counts.min()) < most:
            key_mask = torch.arange(most + 1, device=tokens.device) <= counts[:, None]
        x = self._run(x, key_mask)
        return x[:, :1], x[:, 1:], places


class Decoder(nn.Module):
    """Looks at the visible places and the conditioning tokens from every place; `head` is the published last layer."""

    def __init__(self, token_count: int, code_count: int | None, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(token_count + 1, 1, width))
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(depth))
        if code_count is not None:
            self.head = nn.Linear(width, code_count)

    def add_image_conditioning(self, channels: int, width: int) -> None:
        """The published heads over an image feature map: conditioning embedding, rotation and camera."""
        self.cond_emb = nn.Linear(channels, width)
        self.rotcam_head = nn.Sequential(
            nn.Linear(channels, width), nn.Dropout(0.5), nn.Linear(width, width), nn.Dropout(0.5)
        )
        self.rot_predictor = nn.Linear(width, 6)
        self.cam_predictor = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, conditioning: torch.Tensor | None) -> torch.Tensor:
        """x (B, 1 + T, width): cls and places; conditioning (B, C, width) or None → (B, T, width)."""
        x = x + self.pos_embedding[:, 0]
        leading = 1
        if conditioning is not None:
            leading += conditioning.shape[1]
            x = torch.cat([conditioning, x], dim=1)
        last = len(self.transformer) - 1
        for number, block in enumerate(self.transformer):
            # Nothing reads the leading places after the last block.
            x = block(x, skip=leading if number == last else 0)
        return x


class Mega(nn.Module):
    """Logits and samples of mesh tokens, rotation and camera. Build it with `from_config`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        token_count, code_count, width = config["token_count"], config["code_count"], config["width"]
        self.token_count, self.code_count = token_count, code_count
        conditioning, prior = config["conditioning"], config["prior"]
        self.kind = None if conditioning is None else conditioning["kind"]
        if self.kind == "landmarks" and prior is None:
            raise ValueError('landmark conditioning needs a "prior": it regresses rotation and camera')
        if self.kind == "landmarks":
            proj, codes = CodeEmbedding(token_count, prior["latent_size"], width), None
        else:
            proj, codes = nn.Embedding(code_count, width), code_count
        self.encoder = Encoder(token_count, proj, width, config["encoder_depth"], config["heads"])
        self.decoder = Decoder(token_count, codes, width, config["decoder_depth"], config["heads"])
        # What the blocks compute in, if not in their own precision: torch.bfloat16 trades digits for speed.
        self.autocast: torch.dtype | None = None
        if self.kind == "image":
            self.decoder.add_image_conditioning(conditioning["channels"], width)
        elif self.kind == "landmarks":
            self.landmarks = LandmarkEmbedding(width)
            self.prior = LandmarkRegressor(
                token_count, prior["latent_size"], prior["width"], prior["depth"], prior.get("dropout", 0.0)
            )
            self.latent_embedding = CodeEmbedding(token_count, 2 * prior["latent_size"], width)
            self.latent_head = LatentHead(
                token_count, code_count, prior["latent_size"], width, prior.get("free_rank", 0)
            )
        elif self.kind is not None:
            raise ValueError(f'conditioning kind must be "image" or "landmarks", not {self.kind!r}')
        if conditioning is not None and conditioning.get("backbone") is not None:
            from mega_backend.model import backbones

            self.backbone = backbones.build(**conditioning["backbone"])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Mega":
        """A model with fresh weights.

        config: token_count, code_count, width, encoder_depth, decoder_depth, heads (published values are the defaults);
        conditioning: None, {"kind": "image", "channels": c, "backbone": {"name": …} or None} or {"kind": "landmarks"},
        with a "backbone" that reads the landmarks off pictures or without;
        prior: None, or {"latent_size", "width", "depth"} of the landmark regressor, and "free_rank" of the logits that
        the transformer adds to its own (`LatentHead`). Raises ValueError on unknown keys.
        """
        given = {key: value for key, value in config.items() if key != "kind"}
        unknown = sorted(set(given) - set(DEFAULTS))
        if unknown:
            raise ValueError(f"unknown MEGA settings {', '.join(unknown)}; known are {', '.join(DEFAULTS)}")
        return cls({"kind": "mega"} | DEFAULTS | given)

    # Conditioning -----------------------------------------------------------------------------------------------

    def features(self, crops: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, c, h, w), or landmark features (B, 33, 8), of normalised RGB crops (B, 3, H, W)."""
        if not hasattr(self, "backbone"):
            raise ValueError("this model has no image backbone: give it features directly (landmarks or a feature map)")
        return self.backbone(crops)

    def condition(self, features: torch.Tensor) -> Condition:
        """Everything that depends on the features (B, c, h, w) or landmark features (B, 33, 8) alone."""
        if self.kind == "image":
            if features.ndim != 4:
                raise ValueError(f"image features must be (B, c, h, w), not {tuple(features.shape)}")
            # Row by row, index = y · w + x: what the published programs' outputs agree with.
            flat = features.flatten(2).transpose(1, 2)
            tokens = self.decoder.cond_emb(flat)
            tokens = tokens + sine_positions(*tokens.shape[1:]).to(tokens)
            hidden = self.decoder.rotcam_head(flat.mean(1))
            return Condition(tokens, self.decoder.rot_predictor(hidden), self.decoder.cam_predictor(hidden))
        if self.kind == "landmarks":
            said = self.prior(features)
            pose = said.rotation_6d, said.camera
            return Condition(self.landmarks(features), *pose, features, said.latent, said.sureness)
        raise ValueError("this model was trained without conditioning: call it with features=None")

    def _condition(self, features: "torch.Tensor | Condition | None") -> Condition | None:
        return features if features is None or isinstance(features, Condition) else self.condition(features)

    def pose(self, features: "torch.Tensor | Condition") -> tuple[torch.Tensor, torch.Tensor]:
        """Root rotation (B, 6) and weak-perspective camera (B, 3) = s, tx, ty of the crop."""
        condition = self._condition(features)
        return condition.rotation_6d, condition.camera

    def pose_under(
        self, features: "torch.Tensor | Condition", tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotation (B, N, 6), camera (B, N, 3) and spread (B, N, 3) of each of N hypotheses, tokens (B, N, T).

        Where a limb points towards the camera or away from it, the whole body leans otherwise. spread: radians,
        standard deviation of the rotation about the camera's axes; zero for models that say nothing about it.
        """
        condition = self._condition(features)
        persons, count = tokens.shape[:2]
        if self.kind != "landmarks":
            pose = (part[:, None].expand(-1, count, -1) for part in (condition.rotation_6d, condition.camera))
            return *pose, condition.camera.new_zeros(persons, count, 3)
        known = sampling.lookup(self.codebook, tokens.flatten(0, 1).to(self.codebook.device))
        person = torch.arange(persons, device=known.device).repeat_interleave(count)
        everything = torch.ones(known.shape[:2], dtype=torch.bool, device=known.device)
        said = self.prior(condition.features[person], known, everything)
        parts = said.rotation_6d, said.camera, said.rotation_spread
        return tuple(part.unflatten(0, (persons, count)) for part in parts)

    @property
    def codebook(self) -> torch.Tensor | None:
        """Where the codes of each place lie, (T, K, D), for models that predict latents; None for the published."""
        return self.latent_head.codebook if self.kind == "landmarks" else None

    def _codes(self, condition: Condition | None) -> sampling.Codes | None:
        if self.kind != "landmarks":
            return None
        return sampling.Codes(self.latent_head.codebook, self.latent_head.together[int(condition is None)])

    # Tokens -----------------------------------------------------------------------------------------------------

    def logits(
        self, tokens: torch.Tensor, visible: torch.Tensor, features: "torch.Tensor | Condition | None" = None
    ) -> torch.Tensor:
        """Logits (B, T, K) of every place, given the tokens (B, T) where visible (B, T) is true."""
        condition = self._condition(features)
        if self.autocast is None:
            return self._logits(tokens, visible, condition)
        with torch.autocast(tokens.device.type, self.autocast):
            return self._logits(tokens, visible, condition).float()

    def _logits(self, tokens: torch.Tensor, visible: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        known = said = None
        if self.kind == "landmarks":
            known = sampling.lookup(self.codebook, tokens)
            said = self._said(condition, known, visible)
        cls, packed, places = self.encoder(tokens if known is None else known, visible)
        x = self.decoder.mask_token.to(cls.dtype).expand(len(tokens), self.token_count, -1)
        if packed.shape[1]:
            packed = torch.where(visible.gather(1, places)[..., None], packed, self.decoder.mask_token.to(packed.dtype))
            x = x.scatter(1, places[..., None].expand_as(packed), packed)
        if said is not None:
            place = (said.latent - self.prior.latent_mean) / self.prior.latent_scale
            x = x + self.latent_embedding(torch.cat([place, said.sureness.to(place.dtype)], dim=-1))
        x = self.decoder(torch.cat([cls, x], dim=1), None if condition is None else condition.tokens)
        return self.decoder.head(x) if said is None else self.latent_head(x, said.latent, said.sureness)

    def _said(self, condition: "Condition | None", known: torch.Tensor, visible: torch.Tensor) -> Any:
        """What the regressor says, with latent and sureness (B, T, D), given latents (B, T, D) at visible places."""
        if condition is not None and not bool(visible.any()):
            return condition
        nobody = known.new_zeros(len(known), LANDMARK_COUNT, FEATURE_COUNT)
        return self.prior(nobody if condition is None else condition.features, known, visible)

    def _start(
        self,
        persons: int,
        tokens: torch.Tensor | None,
        visible: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The starting tokens and visibility (B, T): those given, or everything masked."""
        device = self.encoder.cls_token.device
        if tokens is None:
            if visible is not None and bool(visible.any()):
                raise ValueError("visible places need their tokens: give tokens (B, T) too")
            tokens = torch.zeros(persons, self.token_count, dtype=torch.long, device=device)
            return tokens, torch.zeros_like(tokens, dtype=torch.bool)
        if visible is None:
            raise ValueError("say which of the tokens to keep: give visible (B, T) too")
        shape = (persons, self.token_count)
        return tokens.to(device, torch.long).expand(shape), visible.to(device, torch.bool).expand(shape)

    @torch.no_grad()
    def best(
        self,
        features: "torch.Tensor | Condition | None" = None,
        tokens: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
    ) -> Samples:
        """The deterministic answer in one pass: the best code of every masked place, tokens (B, T).

        Best is the likeliest, and for a model that knows where its codes lie the nearest to the expected code.

        tokens and visible (B, T): places to keep; None masks everything.
        """
        condition = self._condition(features)
        persons = _persons(condition, tokens)
        tokens, visible = self._start(persons, tokens, visible)
        log_probability = self.logits(tokens, visible, condition).float().log_softmax(-1)
        best = sampling.likeliest(log_probability, self.codebook)
        own = log_probability.gather(-1, best[..., None])[..., 0]
        return Samples(torch.where(visible, tokens, best), (own * ~visible).sum(1))

    @torch.no_grad()
    def draw(
        self,
        features: "torch.Tensor | Condition | None" = None,
        count: int = 1,
        steps: int | None = None,
        temperature: float | None = None,
        generator: torch.Generator | int | Sequence[int] = 0,
        tokens: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        first: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> Samples:
        """`count` samples for each of B persons (1 without features): tokens (B, count, T), log-probability (B, count).

        steps and temperature: 5 and 1 with features, 20 and 1.3 (steeper annealing) without. generator: a seed, one
        seed per person, or a torch.Generator from which one seed is drawn. Sample n of a person depends on its seed and
        on first + n alone, not on the batch. tokens and visible (B, T): places to keep. progress(fraction) is called
        after each step.
        """
        condition = self._condition(features)
        annealed = condition is None
        steps = steps if steps is not None else (20 if annealed else 5)
        temperature = temperature if temperature is not None else (1.3 if annealed else 1.0)
        persons = _persons(condition, tokens)
        tokens, visible = self._start(persons, tokens, visible)
        seeds = _seeds(generator, persons)
        # All samples of a person start from the same state: its logits are computed once.
        starting = self.logits(tokens, visible, condition)
        rows = [(person, number) for person in range(persons) for number in range(count)]
        parts: list[Samples] = []
        for begin in range(0, len(rows), ROWS):
            chunk = rows[begin : begin + ROWS]
            person = torch.tensor([person for person, _ in chunk], device=tokens.device)
            parts.append(
                sampling.generate(
                    partial(_logits_under, self, None if condition is None else condition.select(person)),
                    starting[person],
                    tokens[person],
                    visible[person],
                    [sampling.row_generator(seeds[person], first + number) for person, number in chunk],
                    steps,
                    temperature,
                    annealed,
                    progress and partial(_overall, progress, begin / len(rows), len(chunk) / len(rows)),
                    self._codes(condition),
                )
            )
        if not parts:
            empty = tokens.new_zeros(persons, 0, self.token_count)
            return Samples(empty, starting.new_zeros(persons, 0))
        return Samples(*(torch.cat(part).unflatten(0, (persons, count)) for part in zip(*parts, strict=True)))

    def sample(self, features: "torch.Tensor | Condition | None" = None, count: int = 1, *args: Any, **options: Any):
        """Sampled tokens (B, count, T) alone; `draw` takes the same arguments and also returns log-probabilities."""
        return self.draw(features, count, *args, **options).tokens


def _logits_under(
    model: Mega, condition: Condition | None, tokens: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    return model.logits(tokens, visible, condition)


def _overall(progress: Callable[[float], None], start: float, share: float, fraction: float) -> None:
    progress(start + share * fraction)


def _persons(condition: Condition | None, tokens: torch.Tensor | None) -> int:
    if condition is not None:
        return len(condition.tokens)
    return 1 if tokens is None else len(tokens)


def _seeds(generator: torch.Generator | int | Sequence[int], persons: int) -> list[int]:
    if isinstance(generator, torch.Generator):
        # One draw whatever the number of persons, so that a batch equals its persons one by one.
        return [int(torch.randint(2**62, (), generator=generator, device=generator.device))] * persons
    seeds = [int(generator)] * persons if isinstance(generator, int) else [int(seed) for seed in generator]
    if len(seeds) != persons:
        raise ValueError(f"give one seed, or one for each of the {persons} persons, not {len(seeds)}")
    return seeds
