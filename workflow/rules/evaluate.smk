# Trained network -> predictions of each video of a split at one frame count, and a record beside them.


rule evaluate:
    input:
        settings=ancient("results/runs/{run}/settings.json"),
        digest=f"{TRAINING}/model.sha256",
        model=ancient(f"{TRAINING}/model.pt"),
        data="results/manifest/manifest.sha256",
        split=ancient("results/manifest/{split}.parquet"),
        cache=ancient(CACHE_RECORDS),
    output:
        predictions=f"{EVALUATION}.parquet",
        record=f"{EVALUATION}.json",
    log:
        "logs/evaluate/{run}/seed{seed}/{split}_{frames}f.log",
    benchmark:
        "logs/benchmarks/evaluate/{run}/seed{seed}/{split}_{frames}f.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        script=script("evaluate"),
        gpu=GPUS,
        gpu_jobs=GPUS,
        options=f"{DEVICE_OPTIONS} --batch-size {CONFIG.evaluation.batch_size}",
        runtime=60,
        mem_mb=16000,
    params:
        code=scoring_code(),
    message:
        "Evaluating {wildcards.run}, seed {wildcards.seed}, at {wildcards.frames} frames"
    shell:
        "python {resources.script:q} --run results/runs/{wildcards.run} --seed {wildcards.seed} "
        "--split {wildcards.split} --frames {wildcards.frames} --threads {threads} {resources.options} --log {log}"
