"""Several methods of several papers in one run: PALs, prefixes and robust AdapterDrop, on tasks that are mixed."""

from __future__ import annotations

import torch

import hfadapt
from hfadapt.testing.toy import toy_batch


def test_pals_with_prefixes_train_together_under_robust_adapter_drop(make_trainer, trained, tmp_path):
    """Every part of every task's adapter moves, and the saved model predicts at any depth what it predicted."""
    method = (hfadapt.PAL(8, num_heads=2, init="normal"), hfadapt.PrefixConfig(2, mlp_size=4))
    trainer = make_trainer(method=method, callbacks=[hfadapt.RobustAdapterDrop()], max_steps=8)
    model = trainer.model
    before = trained(model)
    trainer.train()
    still = [name for name, parameter in trained(model).items() if torch.equal(parameter, before[name])]
    # A gradient of zero is right for them: no softmax feels what moves all of its scores alike.
    assert all(name.endswith("key_bias") for name in still)
    model.eval().save_pretrained(tmp_path / "saved")
    again = hfadapt.MultiTaskModel.from_pretrained(tmp_path / "saved", base=fresh_base(model))
    batch = toy_batch(trainer.model.tasks)
    outputs = []
    for depth in (0, 1, 2):
        for one in (model, again):
            hfadapt.set_adapter_drop(one, depth)
        with torch.no_grad():
            outputs.append(model(**batch).logits)
            assert torch.equal(again(**batch).logits, outputs[-1])
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])


def fresh_base(model):
    from hfadapt.testing.tiny import tiny_model

    base = tiny_model("bert")
    own = {name: tensor for name, tensor in model.base.state_dict().items() if "hfadapt" not in name}
    base.load_state_dict(own)
    return base
