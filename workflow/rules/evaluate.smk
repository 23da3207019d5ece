# Trained networks -> a row a video, and a summary, for each experiment and frame count.


rule evaluate:
    input:
        digest=evaluated_model,
        model=ancient(f"{EXPERIMENT}/model.pt"),
        data="results/manifest/manifest.sha256",
        split=ancient(f"results/manifest/{CONFIG.evaluation.split}.parquet"),
    output:
        predictions=f"{EVALUATION}.parquet",
        summary=f"{EVALUATION}.json",
    log:
        "logs/evaluate/{experiment}/seed{seed}/{frames}f.log",
    benchmark:
        "logs/benchmarks/evaluate/{experiment}/seed{seed}/{frames}f.tsv"
    conda:
        "../../environment.yml"
    threads: CONFIG.runtime.threads
    resources:
        gpu=GPUS,
        runtime=60,
        mem_mb=16000,
    params:
        settings=evaluated_settings,
        code=code_of("evaluate"),
    message:
        "Evaluating {wildcards.experiment}, seed {wildcards.seed}, at {wildcards.frames} frames"
    shell:
        "script evaluate --name {wildcards.experiment} --seed {wildcards.seed} --model {input.model} "
        '--settings {params.settings:q} --manifest results/manifest --videos "$VIDEOS" --state state/evaluation '
        "--batch-size $BATCH_SIZE --threads {threads} $RUNTIME "
        "--predictions {output.predictions} --summary {output.summary} --log {log}"
