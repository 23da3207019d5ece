# Trained network, or the evaluations of an ensemble's networks -> predictions of each video of a split, at one frame count
# or at any, and a record in the same folder.


localrules:
    evaluate_ensemble,


rule evaluate:
    input:
        settings=ancient("results/runs/{run}/settings.json"),
        digest=f"{TRAINING}/model.sha256",
        model=ancient(f"{TRAINING}/model.pt"),
        data="results/manifest/manifest.sha256",
        split=ancient("results/manifest/{split}.parquet"),
        cache=lambda wildcards: cache_records(wildcards.split),
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


rule evaluate_ensemble:
    input:
        records=records_of_members,
        predictions=lambda wildcards: predictions_of(records_of_members(wildcards)),
    output:
        predictions=f"{ENSEMBLE}.parquet",
        record=f"{ENSEMBLE}.json",
    log:
        "logs/evaluate_ensemble/{ensemble}/seed{seed}/{split}_{frames}f.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("evaluate_ensemble"),
        runtime=15,
        mem_mb=4000,
    params:
        code=scoring_code(),
    message:
        "Averaging the networks of {wildcards.ensemble}, seed {wildcards.seed}, at {wildcards.frames} frames"
    shell:
        "python {resources.script:q} --members {input.records} --output {output.record} --log {log}"


rule evaluate_any_frame:
    input:
        settings=ancient("results/runs/{run}/settings.json"),
        digest=f"{TRAINING}/model.sha256",
        model=ancient(f"{TRAINING}/model.pt"),
        data="results/manifest/manifest.sha256",
        split=ancient("results/manifest/{split}.parquet"),
        cache=lambda wildcards: cache_records(wildcards.split),
    output:
        predictions=f"{TRAINING}/{{split}}_any_frame.parquet",
        record=f"{TRAINING}/{{split}}_any_frame.json",
    log:
        "logs/evaluate_any_frame/{run}/seed{seed}/{split}.log",
    benchmark:
        "logs/benchmarks/evaluate_any_frame/{run}/seed{seed}/{split}.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        script=script("evaluate"),
        gpu=GPUS,
        gpu_jobs=GPUS,
        options=f"{DEVICE_OPTIONS} --batch-size {CONFIG.evaluation.batch_size}",
        runtime=240,
        mem_mb=24000,
    params:
        frames=CONFIG.evaluation.any_frame,
        code=scoring_code(),
    message:
        "Evaluating {wildcards.run}, seed {wildcards.seed}, at the frame counts {params.frames}"
    shell:
        "python {resources.script:q} --run results/runs/{wildcards.run} --seed {wildcards.seed} "
        "--split {wildcards.split} --any-frame --frames {params.frames} --threads {threads} {resources.options} "
        "--log {log}"
