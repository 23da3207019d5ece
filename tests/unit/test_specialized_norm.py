import torch

from ffnrepro.recipe.models.specialized_norm import SpecializedBatchNorm2d


def test_each_frame_count_normalises_with_its_own_weights():
    norm = SpecializedBatchNorm2d(3, (4, 8)).eval()
    with torch.no_grad():
        for count, scale in (("4", 2.0), ("8", 3.0)):
            norm[count].weight.fill_(scale)
            norm[count].bias.fill_(1.0)
            norm[count].running_mean.fill_(0.5)
            norm[count].running_var.fill_(4.0 - 1e-5)
    x = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(norm(x, 4), (x - 0.5) / 2 * 2 + 1)
    torch.testing.assert_close(norm(x, 8), (x - 0.5) / 2 * 3 + 1)


def test_training_updates_the_statistics_of_one_frame_count():
    norm = SpecializedBatchNorm2d(3, (4, 8, 16)).train()
    x = torch.randn(20, 3, 2, 2) + 7
    norm(x, 8)
    torch.testing.assert_close(norm["8"].running_mean, 0.1 * x.mean((0, 2, 3)))
    for count in ("4", "16"):
        assert not norm[count].running_mean.any()
        assert norm[count].num_batches_tracked == 0


def test_keys_name_the_frame_counts():
    keys = list(SpecializedBatchNorm2d(3, (16, 4)).state_dict())
    assert keys[0] == "16.weight"
    assert "4.running_var" in keys
    assert len(keys) == 10
