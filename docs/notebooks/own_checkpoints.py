# %% [markdown]
# # Your own checkpoints
#
# Any folder of Hugging Face checkpoints of a causal model is a suite, and every lens takes a suite. Here a loop of a
# few lines trains a small GPT-NeoX to say the larger of two numbers, and saves it as it goes. Nothing in the loop knows
# this library.

# %%
import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

config = GPTNeoXConfig(
    vocab_size=17,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=8,
    attn_implementation="eager",
)
a, b = np.divmod(np.arange(256), 16)
rows = np.stack([a, b, np.full(256, 16), np.maximum(a, b)], axis=1)  # `a b = larger`; `=` is token 16
trained_on = np.random.default_rng(0).permutation(256)[:160]

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
# A `FixedTask` is arrays: the rows, which tokens are scored, and for each feature its labels and where they are read.
# `split` says what the model was trained on, so that probes never see it.

# %%
import qfl_interp as qfl

scored = np.zeros(rows.shape, dtype=bool)
scored[:, 3:] = True
larger = np.maximum(a, b)[:, None]
features = {
    "larger": qfl.FixedFeature("categorical", larger, np.full((256, 1), 2), "The answer, read at `=`."),
    "upper_half": qfl.FixedFeature("binary", (larger > 7).astype(int), np.full((256, 1), 2), "Whether it is above 7."),
}
task = qfl.FixedTask(
    "larger", rows, scored, features, str_tokens=[*map(str, range(16)), "="], split=trained_on, prompt_end=False
)
suite = qfl.Suite.open("checkpoints", task, tokens_per_step=160 * 4)
print(suite.steps)

# %% [markdown]
# ## Look
#
# When can a probe read at `=` whether the answer is above 7? Beside each probe stand the same probes on shuffled labels
# and on untrained models.

# %%
from qfl_interp.analyses import patch, probe, validate

probes = probe(suite, "upper_half", config=qfl.ProbeConfig(n_train=40, n_test=40), progress=False)
print(probes)
probes.plot()

# %% [markdown]
# Where does the answer come from? Two prompts differ in it; one clean activation is written into the other run. 1 is
# the clean answer.

# %%
patched = patch(suite, "larger", "last", components=("resid_pre", "z"), n_pairs=16, progress=False)
print(patched)
patched.plot()

# %% [markdown]
# The loop logged no validations. `validate` measures them at every checkpoint, on rows that the model never saw.

# %%
losses = validate(suite, progress=False)
print(losses)
losses.plot()
