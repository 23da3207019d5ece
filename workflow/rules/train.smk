# Manifest -> trained networks. The manifest and the weights travel as their digests: a file of the same content
# that is written again retrains nothing.


localrules:
    fetch_weights,


rule fetch_weights:
    input:
        weights_source,
    output:
        weights="results/weights/resnet{depth}.pth",
        digest="results/weights/resnet{depth}.sha256",
    log:
        "logs/fetch_weights/{depth}.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=15,
        mem_mb=1000,
    params:
        sha256=CONFIG.network.weights_sha256 or "",
    message:
        "Fetching the ImageNet weights of ResNet-{wildcards.depth}"
    shell:
        "{PYTHON} {SCRIPTS}/fetch_weights.py --depth {wildcards.depth} --source {input:q} --sha256 {params.sha256:q} "
        "--output {output.weights} --digest {output.digest} --log {log}"


rule train_tsm:
    input:
        classes="results/labels/classes.csv",
        data="results/manifest/manifest.sha256",
        splits=ancient(
            ["results/manifest/train.parquet", "results/manifest/validation.parquet"]
        ),
        weights_digest=weights_digest,
        weights=ancient(weights_file),
    output:
        model=f"{EXPERIMENT_FOLDER}/model.pt",
        digest=f"{EXPERIMENT_FOLDER}/model.sha256",
        history=f"{EXPERIMENT_FOLDER}/history.parquet",
        run=f"{EXPERIMENT_FOLDER}/run.json",
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
        settings=experiment_settings,
        weights=weights_argument,
    message:
        "Training TSM: {wildcards.experiment}, seed {wildcards.seed}"
    shell:
        "{TRAIN} {SCRIPTS}/{rule}.py --name {wildcards.experiment} --settings {params.settings:q} "
        "--classes {input.classes} --manifest results/manifest --videos {VIDEOS} {params.weights} --state state/train "
        "--output $(dirname {output.model}) --threads {threads} {RUNTIME} {TRAINING} --log {log}"


use rule train_tsm as train_ffn with:
    wildcard_constraints:
        experiment=experiments_of("ffn"),
    message:
        "Training FFN: {wildcards.experiment}, seed {wildcards.seed}"
