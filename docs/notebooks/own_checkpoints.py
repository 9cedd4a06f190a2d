# %% [markdown]
# # Your own checkpoints
#
# Any folder of Hugging Face checkpoints of a causal model is a suite, and every lens takes a suite. Here a loop of a few
# lines trains a small GPT-NeoX on sums modulo 8 and saves it as it goes. Nothing in the loop knows this library.

# %%
import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

config = GPTNeoXConfig(
    vocab_size=9,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=8,
    attn_implementation="eager",
)
a, b = np.divmod(np.arange(64), 8)
rows = np.stack([a, b, np.full(64, 8), (a + b) % 8], axis=1)  # `a b = sum`; `=` is token 8
trained_on = np.random.default_rng(0).permutation(64)[:48]

torch.manual_seed(0)
model = GPTNeoXForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
tokens = torch.from_numpy(rows[trained_on])
for step in range(201):
    if step in (0, 5, 10, 20, 50, 100, 150, 200):
        model.save_pretrained(f"checkpoints/step{step}")
    logits = model(tokens).logits[:, 2]
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 3])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"training loss {loss.item():.3f} nats")

# %% [markdown]
# ## Say what the data is
#
# A `FixedTask` is arrays: the rows, which tokens are scored, and for each feature its labels and where they are read. `split`
# says what the model was trained on, so that probes never see it.

# %%
import qfl_interp as qfl

scored = np.zeros(rows.shape, dtype=bool)
scored[:, 3:] = True
features = {
    "odd": qfl.FixedFeature("binary", (b % 2)[:, None], np.full((64, 1), 1), "Whether the second number is odd."),
    "sum": qfl.FixedFeature("categorical", ((a + b) % 8)[:, None], np.full((64, 1), 2), "The sum, read at `=`."),
}
task = qfl.FixedTask(
    "sums", rows, scored, features, str_tokens=[*map(str, range(8)), "="], split=trained_on, prompt_end=False
)
suite = qfl.Suite.open("checkpoints", task, tokens_per_step=48 * 4)
suite.steps

# %% [markdown]
# ## Look
#
# Can `odd` be read at the second number, at every checkpoint and layer? Beside each probe stand the same probes on shuffled
# labels and on untrained models.

# %%
from qfl_interp.analyses import patch, probe, validate

probes = probe(suite, config=qfl.ProbeConfig(n_train=40, n_test=20), progress=False)
print(probes)
probes.plot("odd")

# %% [markdown]
# Where is the sum? Two prompts differ in it; one clean activation is written into the other run. 1 is the clean answer.

# %%
patched = patch(suite, "sum", "last", components=("resid_pre", "z"), n_pairs=16, progress=False)
print(patched)
patched.plot()

# %% [markdown]
# The loop logged no validations. `validate` measures them at every checkpoint, on rows that the model never saw.

# %%
print(validate(suite, progress=False))
