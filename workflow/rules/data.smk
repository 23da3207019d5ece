# Label files and videos -> labels, index of the videos, manifest.
#
# Paths that affect no result are resources: they appear in the printed command, and changing them reruns nothing. The
# content of the folders of labels and videos is a param, as a digest. `revision` is raised by hand when the output changes.

from ffnrepro.data.frame_cache import REVISION as CACHE_REVISION
from ffnrepro.data.labels import REVISION as LABELS_REVISION
from ffnrepro.data.labels import (
    check_counts,
    check_evaluable,
    class_warnings,
    read_classes,
    read_labels,
)
from ffnrepro.data.manifest import REVISION as MANIFEST_REVISION
from ffnrepro.data.names import compare_names
from ffnrepro.data.video_index import REVISION as INDEX_REVISION
from ffnrepro.data.video_index import check_frames
from ffnrepro.recipe import REVISION as RECIPE_REVISION


localrules:
    parse_labels,
    build_manifest,
    plot_manifest,


onstart:
    # Wrong data is reported in one line before any job starts. A dry run does not run this, so it works without the data.
    jobs = list(workflow.dag.needrun_jobs())
    planned = {job.rule.name for job in jobs}
    trained = {
        experiment_of(job.wildcards) for job in jobs if job.rule.name in ("train_tsm", "train_ffn")
    }
    evaluated = {
        (experiment_of(job.wildcards), int(job.wildcards.frames))
        for job in jobs
        if job.rule.name == "evaluate"
    }
    imports = {experiment_of(job.wildcards) for job in jobs if job.rule.name == "import_checkpoint"}
    starts = {CONFIG.experiments[name].start for name in trained}
    imported = (imports | starts | {name for name, _ in evaluated}) & CONFIG.imports.keys()
    with one_line_errors():
        if {"parse_labels", "index_videos"} & planned:
            data = CONFIG.data
            classes, labels = read_labels(Path(data.labels), trained=bool(trained))
            check_counts(
                classes,
                labels,
                dataset=CONFIG.dataset,
                partial=data.partial,
                trained=bool(trained),
            )
            check_evaluable(labels, CONFIG.evaluation.split)
            for warning in class_warnings(classes, labels):
                print(f"labels: {warning}", file=sys.stderr)
            # The labels alone can be read before the videos are unpacked.
            if {"index_videos", "build_manifest"} & planned:
                compare_names(
                    labels,
                    names_of_videos(),
                    Path(data.videos),
                    data.layout,
                    max_excluded=data.max_excluded,
                )
            if "index_videos" in planned and data.layout == "frames":
                check_frames(Path(data.videos), names_of_videos())
        if CONFIG.own_weights:
            check_own_weights(trained)
        if imported:
            if "parse_labels" not in planned:
                classes = read_classes(Path("results/labels/classes.csv"))
            # Most processes of the workflow do not need torch, whose import takes seconds.
            from ffnrepro.imports import check_imports

            check_imports(CONFIG, imported, classes, trained=trained, evaluated=evaluated)


rule parse_labels:
    output:
        classes="results/labels/classes.csv",
        table="results/labels/labels.parquet",
    log:
        "logs/parse_labels.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("parse_labels"),
        labels=CONFIG.data.labels,
        runtime=15,
        mem_mb=4000,
    params:
        dataset=CONFIG.dataset,
        partial="--partial" if CONFIG.data.partial else "",
        files=lambda wildcards: digests_of_labels(),
        revision=LABELS_REVISION,
    message:
        "Reading the label files"
    shell:
        "python {resources.script:q} --labels {resources.labels:q} --dataset {params.dataset:q} {params.partial} "
        "--classes {output.classes} --table {output.table} --log {log}"


rule index_videos:
    output:
        "results/video_index/part-{shard}.parquet",
    log:
        "logs/index_videos/{shard}.log",
    benchmark:
        "logs/benchmarks/index_videos/{shard}.tsv"
    conda:
        "../../environment.yml"
    resources:
        script=script("index_videos"),
        videos=CONFIG.data.videos,
        runtime=120,
        mem_mb=2000,
    params:
        names=lambda wildcards: digests_of_shards()[int(wildcards.shard)],
        shards=CONFIG.data.index_shards,
        layout=CONFIG.data.layout,
        verify=CONFIG.data.verify,
        revision=INDEX_REVISION,
    message:
        "Indexing the videos: shard {wildcards.shard}"
    shell:
        "python {resources.script:q} --videos {resources.videos:q} --shard {wildcards.shard} --shards {params.shards} "
        "--layout {params.layout} --verify {params.verify} --entries state/video_index --output {output} --log {log}"


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
        excluded=report("results/manifest/excluded.csv", caption="../report/excluded.rst", category="Data"),
        summary="results/manifest/summary.json",
        digest="results/manifest/manifest.sha256",
    log:
        "logs/build_manifest.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("build_manifest"),
        runtime=15,
        mem_mb=4000,
    params:
        max_excluded=CONFIG.data.max_excluded,
        revision=MANIFEST_REVISION,
    message:
        "Joining labels and videos into the manifest"
    shell:
        "python {resources.script:q} --classes {input.classes} --table {input.table} --index {input.index} "
        "--max-excluded {params.max_excluded} --output results/manifest --log {log}"


rule cache_frames:
    input:
        # A video that was replaced changes the index, and a label changes which videos are used.
        index="results/video_index/part-{shard}.parquet",
        data="results/manifest/manifest.sha256",
        manifest=ancient("results/manifest/{split}.parquet"),
    output:
        "results/frame_cache/{split}/part-{shard}.json",
    log:
        "logs/cache_frames/{split}/{shard}.log",
    benchmark:
        "logs/benchmarks/cache_frames/{split}/{shard}.tsv"
    conda:
        "../../environment.yml"
    resources:
        script=script("cache_frames"),
        videos=CONFIG.data.videos,
        cache=CONFIG.data.cache_folder,
        runtime=120,
        mem_mb=4000,
    params:
        shards=CONFIG.data.index_shards,
        quality=CONFIG.data.jpeg_quality,
        revision=f"{RECIPE_REVISION}.{CACHE_REVISION}",
    message:
        "Caching the frames of the {wildcards.split} videos: shard {wildcards.shard}"
    shell:
        "python {resources.script:q} --videos {resources.videos:q} --manifest {input.manifest} --shard {wildcards.shard} "
        "--shards {params.shards} --quality {params.quality} --cache-folder {resources.cache:q}/{wildcards.split} "
        "--output {output} --log {log}"


rule plot_manifest:
    input:
        "results/manifest/summary.json",
    output:
        classes=report(
            "results/figures/class_counts.png", caption="../report/class_counts.rst", category="Data"
        ),
        lengths=report(
            "results/figures/clip_lengths.png", caption="../report/clip_lengths.rst", category="Data"
        ),
    log:
        "logs/plot_manifest.log",
    conda:
        "../../environment.yml"
    resources:
        script=script("plot_manifest"),
        runtime=5,
        mem_mb=1000,
    params:
        code=module_code("ffnrepro.figures"),
    message:
        "Plotting class counts and clip lengths"
    shell:
        "python {resources.script:q} --summary {input} --classes {output.classes} "
        "--lengths {output.lengths} --log {log}"
