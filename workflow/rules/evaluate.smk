# Trained network -> predictions of each video of a split at one frame count, and a record beside them.


rule evaluate:
    input:
        settings=ancient("results/runs/{run}/settings.json"),
        digest="results/runs/{run}/seed{seed}/model.sha256",
        model=ancient("results/runs/{run}/seed{seed}/model.pt"),
        data="results/manifest/manifest.sha256",
        split=ancient("results/manifest/{split}.parquet"),
    output:
        predictions="results/runs/{run}/seed{seed}/{split}_{frames}f.parquet",
        record="results/runs/{run}/seed{seed}/{split}_{frames}f.json",
    log:
        "logs/evaluate/{run}/seed{seed}/{split}_{frames}f.log",
    benchmark:
        "logs/benchmarks/evaluate/{run}/seed{seed}/{split}_{frames}f.tsv"
    wildcard_constraints:
        run="[A-Za-z0-9_-]+-[0-9a-f]{8}",
        split="train|validation|test",
        frames="[1-9][0-9]{0,2}",
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        # On one machine an evaluation takes all GPUs: two at a time would both use the first one.
        gpu=GPUS * (CONFIG.training.gpus if workflow.resource_settings.nodes is None else 1),
        runtime=60,
        mem_mb=16000,
    params:
        script=script("evaluate"),
        code=scoring_code(),
    message:
        "Evaluating {wildcards.run}, seed {wildcards.seed}, at {wildcards.frames} frames"
    shell:
        "python {params.script} --run results/runs/{wildcards.run} --seed {wildcards.seed} "
        "--split {wildcards.split} --frames {wildcards.frames} --manifest results/manifest --videos {VIDEOS:q} "
        "--batch-size {BATCH_SIZE} --threads {threads} {RUNTIME} --log {log}"
