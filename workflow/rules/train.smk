# Manifest -> trained networks. The manifest and the weights travel as their digests: a file of the same content
# that is written again retrains nothing. The large files beside them are `ancient`; a job of which all files are
# `ancient` would hide a changed param of the job behind it, so each has its digest beside it.


localrules:
    fetch_weights,
    check_training,


rule fetch_weights:
    input:
        ancient(weights_source),  # the digest that it must have says which one it is
    output:
        weights="results/weights/resnet{depth}.pth",
        digest="results/weights/resnet{depth}.sha256",
        made="results/weights/resnet{depth}.json",
    log:
        "logs/fetch_weights/{depth}.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=15,
        mem_mb=1000,
    params:
        source=WEIGHTS_OPTIONS,
        code=code_of("fetch_weights"),
    message:
        "Fetching the ImageNet weights of ResNet-{wildcards.depth}"
    shell:
        "script fetch_weights --depth {wildcards.depth} {params.source} "
        "--output {output.weights} --digest {output.digest} --made {output.made} --log {log}"


rule check_training:
    input:
        classes="results/labels/classes.csv",
        data="results/manifest/manifest.sha256",
        splits=ancient(["results/manifest/train.parquet", "results/manifest/validation.parquet"]),
        weights_digest=weights_digest,
        weights=ancient(weights_file),
    output:
        "results/checks/{experiment}.txt",
    log:
        "logs/check_training/{experiment}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        gpu=GPUS * CONFIG.training.gpus,  # as the training: nothing else is to be on the GPU that is looked at
        steps=tried_steps,  # as a param it would run the rule again on another machine
        runtime=30,
        mem_mb=16000,
    params:
        settings=settings_of_any_seed,
        weights=weights_argument,
    message:
        "Looking at what training needs: {wildcards.experiment}"
    shell:
        "script check_training --name {wildcards.experiment} --settings {params.settings:q} --classes {input.classes} "
        '--manifest results/manifest --videos "$VIDEOS" {params.weights} --state state/train --output {output} '
        "--threads {threads} --steps {resources.steps} $RUNTIME $TRAINING --log {log}"


rule train_tsm:
    input:
        checked="results/checks/{experiment}.txt",
        classes="results/labels/classes.csv",
        data="results/manifest/manifest.sha256",
        splits=ancient(["results/manifest/train.parquet", "results/manifest/validation.parquet"]),
        weights_digest=weights_digest,
        weights=ancient(weights_file),
    output:
        model=f"{EXPERIMENT}/model.pt",
        digest=f"{EXPERIMENT}/model.sha256",
        history=f"{EXPERIMENT}/history.parquet",
        run=f"{EXPERIMENT}/run.json",
    log:
        "logs/train/{experiment}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/train/{experiment}/seed{seed}.tsv"
    wildcard_constraints:
        experiment=experiments_of("tsm"),
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        gpu=GPUS * CONFIG.training.gpus,
        runtime=2880,
        mem_mb=32000,
    params:
        method="tsm",
        settings=experiment_settings,
        code=code_of("train_tsm"),
        weights=weights_argument,
    message:
        "Training TSM: {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        'LAUNCH="$LAUNCHER" script train_{params.method} --name {wildcards.experiment} --settings {params.settings:q} '
        '--classes {input.classes} --manifest results/manifest --videos "$VIDEOS" {params.weights} --state state/train '
        "--output $(dirname {output.model}) --threads {threads} $RUNTIME $TRAINING --log {log}"


use rule train_tsm as train_ffn with:
    wildcard_constraints:
        experiment=experiments_of("ffn"),
    params:
        method="ffn",
        settings=experiment_settings,
        code=code_of("train_ffn"),
        weights=weights_argument,
    message:
        "Training FFN: {wildcards.experiment}, seed {wildcards.seed}"
