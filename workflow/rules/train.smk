# Manifest -> trained or imported networks. A training depends on the digest of the manifest, so rewriting a manifest with the
# same content retrains nothing. Large files that have a digest file are `ancient`, and so are files whose content is
# already part of the run's name.


localrules:
    fetch_weights,
    write_settings,
    check_training,
    import_checkpoint,


rule fetch_weights:
    output:
        "results/weights/resnet{depth}.pth",
    log:
        "logs/fetch_weights/{depth}.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("fetch_weights"),
        runtime=15,
        mem_mb=1000,
    message:
        "Fetching the ImageNet weights of ResNet-{wildcards.depth}"
    shell:
        "python {resources.script:q} --depth {wildcards.depth} --output {output} --log {log}"


rule write_settings:
    output:
        "results/runs/{run}/settings.json",
    log:
        "logs/write_settings/{run}.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("write_settings"),
        # The settings are not a param, because the run's name stands for them: a new option with its default reruns nothing.
        settings=settings_of,
        runtime=5,
        mem_mb=1000,
    message:
        "Writing the settings of {wildcards.run}"
    shell:
        "python {resources.script:q} --settings {resources.settings:q} --output {output} --log {log}"


rule check_training:
    input:
        # All inputs are ancient, so that this job runs only because a training runs. If it ran for a reason of its own,
        # Snakemake would overlook changes for the jobs that depend on it.
        settings=ancient("results/runs/{run}/settings.json"),
        classes=ancient("results/labels/classes.csv"),
        data=ancient("results/manifest/manifest.sha256"),
        splits=ancient(["results/manifest/train.parquet", "results/manifest/validation.parquet"]),
        cache=ancient(cache_records("train", "validation")),
        start=ancient(start_file),
    output:
        # The file is temporary, so that each training is checked again.
        temp(f"{TRAINING}/checked.txt"),
    log:
        "logs/check_training/{run}/seed{seed}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        script=script("check_training"),
        # As for a training: no other job may use the GPU that is checked.
        gpu_jobs=GPUS,
        # Some steps are tried; on a cluster none, because another machine trains (profiles/slurm).
        steps=20,
        start=start_argument,
        options=training_options,
        runtime=30,
        mem_mb=16000,
    message:
        "Checking what a training needs: {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python {resources.script:q} --run results/runs/{wildcards.run} --seed {wildcards.seed} {resources.start} "
        "--output {output} --steps {resources.steps} --threads {threads} {resources.options} --log {log}"


rule train_tsm:
    input:
        settings=ancient("results/runs/{run}/settings.json"),
        checked=ancient(f"{TRAINING}/checked.txt"),
        classes=ancient("results/labels/classes.csv"),
        data="results/manifest/manifest.sha256",
        splits=ancient(["results/manifest/train.parquet", "results/manifest/validation.parquet"]),
        # Not ancient: if a job of the cache also runs, Snakemake would otherwise overlook a change of the data.
        cache=cache_records("train", "validation"),
        start=ancient(start_file),
        start_digest=start_digest,
    output:
        model=f"{TRAINING}/model.pt",
        digest=f"{TRAINING}/model.sha256",
        history=f"{TRAINING}/history.parquet",
        run=f"{TRAINING}/run.json",
    log:
        "logs/train/{run}/seed{seed}.log",
    benchmark:
        "logs/benchmarks/train/{run}/seed{seed}.tsv"
    wildcard_constraints:
        run=runs_of("tsm"),
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        script=script("train"),
        gpu=GPUS * CONFIG.training.gpus,
        gpu_jobs=GPUS,
        note=training_note,
        options=training_options,
        runtime=2880,
        mem_mb=32000,
    params:
        start=start_argument,
    message:
        "Training {wildcards.run}, seed {wildcards.seed}: {resources.note}"
    shell:
        "python {resources.script:q} --run results/runs/{wildcards.run} --seed {wildcards.seed} {params.start} "
        "--threads {threads} {resources.options} --log {log}"


use rule train_tsm as train_ffn with:
    wildcard_constraints:
        run=runs_of("ffn"),


rule import_checkpoint:
    input:
        settings=ancient("results/runs/{run}/settings.json"),
        classes=ancient("results/labels/classes.csv"),
        data="results/manifest/manifest.sha256",
    output:
        model=f"{TRAINING}/model.pt",
        digest=f"{TRAINING}/model.sha256",
        history=f"{TRAINING}/history.parquet",
        run=f"{TRAINING}/run.json",
    log:
        "logs/import_checkpoint/{run}/seed{seed}.log",
    wildcard_constraints:
        run=runs_of("checkpoint"),
    conda:
        "../../environment.yml"
    resources:
        script=script("import_checkpoint"),
        # The run's name stands for the content of the file, which may be moved.
        path=lambda wildcards: str(CONFIG.imports[experiment_of(wildcards)]),
        runtime=15,
        mem_mb=4000,
    message:
        "Importing {resources.path} as {wildcards.run}, seed {wildcards.seed}"
    shell:
        "python {resources.script:q} --run results/runs/{wildcards.run} --seed {wildcards.seed} "
        "--path {resources.path:q} --classes {input.classes} --data {input.data} --log {log}"
