# %% [markdown]
# # A sweep
#
# One run says when one model of one size learned. A sweep trains a grid of runs over compute budgets and looks at all
# of them at once. This one has four budgets and two seeds of 4-bit addition: small enough for a minute.

# %%
import qfl_interp as qfl

config = qfl.SweepConfig.from_dict(
    {
        "name": "small",
        "grid": [
            {
                "task": "addition",
                "length": 4,
                "budget_flops": [1e9, 3e9, 1e10, 3e10],
                "d_model": 16,
                "n_layers": 2,
                "batch_size": 64,
                "lr": 1e-2,
                "seed": [0, 1],
                "n_val": 200,
            }
        ],
    }
)
sweep = qfl.run_sweep(config, "runs/sweeps/small", qfl.Execution(workers=1), progress=False)
print(sweep)

# %% [markdown]
# Call it again and it trains nothing: runs are named by the hash of their configuration, and finished ones are skipped.
# A sweep that was stopped goes on. (In a script, put the call under `if __name__ == "__main__":`; it starts processes.)
#
# ## One table of all runs

# %%
columns = ["budget_flops", "lr", "seed", "val_loss", "val_exact_answer"]
sweep.table()[columns].sort_values(columns[:3]).reset_index(drop=True)

# %% [markdown]
# `best` takes the configuration with the lowest mean loss over seeds. SQL over the table answers the rest.

# %%
sweep.best(3e10)[columns]

# %%
sweep.query("select budget_flops, min(val_loss) as lowest from runs group by budget_flops order by budget_flops")

# %% [markdown]
# ## Loss against compute
#
# The best configuration at every budget, the power law that is fitted to it, and whether the curve leaves that law.

# %%
from qfl_interp.analyses import across, scaling

laws = scaling(sweep, n_resamples=99)
print(laws)
laws.plot()

# %% [markdown]
# ## Features against compute
#
# The paper's protocol: the final model of each budget is probed. Is the carry learned at a smaller budget than the one
# at which the loss falls? With four budgets and two seeds the answer is coarse; a verdict says so where it is not
# certain.

# %%
found = across(sweep, "carry", config=qfl.ProbeConfig(n_train=200, n_test=100), progress=False)
print(found)
found.plot()

# %% [markdown]
# Any run of the sweep is an ordinary run, for every lens:

# %%
run = sweep.run(sweep.table()["run_id"].iloc[0])
print(run.run_id, run.steps, run.finished)
