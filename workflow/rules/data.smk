# Label files and videos -> labels, index of the videos, manifest.


localrules:
    parse_labels,
    build_manifest,
    plot_manifest,


onstart:
    # What is wrong with the data is said in one line before any job starts. A dry run does not come here: it plans
    # whether or not the data is there.
    planned = {job.rule.name for job in workflow.dag.needrun_jobs()}
    try:
        if "parse_labels" in planned:
            classes, labels = read_labels(Path(CONFIG.data.labels))
            check_counts(classes, labels, dataset=CONFIG.dataset, partial=CONFIG.data.partial)
            check_evaluable(labels, CONFIG.evaluation.split)
        if "index_videos" in planned:
            list_videos(Path(CONFIG.data.videos), CONFIG.data.layout)
        if "fetch_weights" in planned and CONFIG.own_weights and not os.path.exists(CONFIG.own_weights):
            raise UserError(
                f"{CONFIG.own_weights}: no such file; set network.weights to a file, imagenet or null"
            )
    except UserError as error:
        sys.exit(f"error: {error}")


rule parse_labels:
    input:
        ancient(label_files),  # by digest below: Snakemake compares a large file by its time
    output:
        classes="results/labels/classes.csv",
        table="results/labels/labels.parquet",
        made="results/labels/made.json",
    log:
        "logs/parse_labels.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=15,
        mem_mb=4000,
    params:
        dataset=CONFIG.dataset,
        partial="--partial" if CONFIG.data.partial else "",
        files=labels_digests,
        code=code_of("parse_labels"),
    message:
        "Reading the label files"
    shell:
        'script parse_labels --labels "$LABELS" --dataset {params.dataset:q} {params.partial} '
        "--classes {output.classes} --table {output.table} --made {output.made} --log {log}"


rule index_videos:
    output:
        index="results/video_index/part-{shard}.parquet",
        made="results/video_index/part-{shard}.json",
    log:
        "logs/index_videos/{shard}.log",
    benchmark:
        "logs/benchmarks/index_videos/{shard}.tsv"
    conda:
        "../../environment.yml"
    resources:
        runtime=120,
        mem_mb=2000,
    params:
        names=shard_digest,
        videos=CONFIG.data.videos,
        shards=CONFIG.data.index_shards,
        layout=CONFIG.data.layout,
        verify=CONFIG.data.verify,
        code=code_of("index_videos"),
    message:
        "Indexing the videos: shard {wildcards.shard}"
    shell:
        'script index_videos --videos "$VIDEOS" --shard {wildcards.shard} --shards {params.shards} '
        "--layout {params.layout} --verify {params.verify} --watch $WATCH --entries state/video_index "
        "--output {output.index} --made {output.made} --log {log}"


rule build_manifest:
    input:
        classes="results/labels/classes.csv",
        table="results/labels/labels.parquet",
        index=expand(
            "results/video_index/part-{shard}.parquet",
            shard=range(CONFIG.data.index_shards),
        ),
    output:
        splits=expand("results/manifest/{split}.parquet", split=["train", "validation", "test"]),
        excluded="results/manifest/excluded.csv",
        summary="results/manifest/summary.json",
        digest="results/manifest/manifest.sha256",
        made="results/manifest/made.json",
    log:
        "logs/build_manifest.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=15,
        mem_mb=4000,
    params:
        max_excluded=CONFIG.data.max_excluded,
        code=code_of("build_manifest"),
    message:
        "Joining labels and videos into the manifest"
    shell:
        "script build_manifest --classes {input.classes} --table {input.table} --index {input.index} "
        "--max-excluded {params.max_excluded} --output results/manifest --log {log}"


rule plot_manifest:
    input:
        "results/manifest/summary.json",
    output:
        classes="results/figures/class_counts.png",
        lengths="results/figures/clip_lengths.png",
    log:
        "logs/plot_manifest.log",
    conda:
        "../../environment.yml"
    resources:
        runtime=5,
        mem_mb=1000,
    params:
        code=code_of("plot_manifest"),
    message:
        "Drawing class counts and clip lengths"
    shell:
        "script plot_manifest --summary {input} --classes {output.classes} "
        "--lengths {output.lengths} --log {log}"
