"""Flags of the diffusers DreamBooth scripts and of the paper's released one that are called otherwise, or not here."""

ALIASES = {
    "pretrained_model_name_or_path": "model",
    "init_sigma": "weight_std",
    "prior_sigma": "prior_std",
    "lambda1": "kl_weight",
    "offset_noise": "noise_offset",
}
"""Their names for settings of ours."""

_HUB = "upload the finished folder instead: hf upload <name> <output_dir>"
_TRACKER = "not needed: metrics.jsonl and samples/ in output_dir hold curves and images, fewbayes report makes a page"
INSTEAD: dict[str, str] = {
    "revision": "download that revision (hf download <model> --revision <revision>) and give its folder as --model",
    "variant": "download that variant and give its folder as --model",
    "tokenizer_name": "the tokenizer of --model is used; change it in that folder",
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "num_train_epochs": "count steps by --max_train_steps; an epoch is images / batch size steps",
    "validation_epochs": "count steps by --validation_steps",
    "resume_from_checkpoint": "not needed: the same command continues from the newest whole checkpoint in --output_dir",
    "scale_lr": "give the scaled rate as --learning_rate",
    "lr_num_cycles": "--lr_scheduler has constant, constant_with_warmup, linear and cosine, which need no cycles",
    "lr_power": "--lr_scheduler has constant, constant_with_warmup, linear and cosine, which need no power",
    "optimizer": "AdamW is used; leave it out",
    "dataloader_num_workers": "not needed: the images are held in memory",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_model_id": _HUB,
    "report_to": _TRACKER,
    "logging_dir": _TRACKER,
    "tracker_name": _TRACKER,
    "allow_tf32": "set torch's own environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1",
    "local_rank": "set by accelerate launch; leave it out",
    "lora_layers": "choose the layers by --adapter_targets",
    "lora_bias": "biases are not trained with adapters",
    "train_text_encoder_ti": "use --train_rare_token",
    "learnable_property": "use --train_rare_token",
    "dataset_name": "give a folder by --instance_data_dir",
    "dataset_config_name": "give a folder by --instance_data_dir",
    "image_column": "give a folder by --instance_data_dir",
    "caption_column": "put captions beside the images, as 00.txt for 00.jpg or as metadata.jsonl",
    "repeats": "count steps by --max_train_steps; images are gone through as often as needed",
    "pre_compute_text_embeddings": "--cache_latents caches prompts too, and is on",
    "prior_generation_precision": "class images are made in the precision of --mixed_precision",
    "enable_xformers_memory_efficient_attention": "not needed: torch's own efficient attention is used",
    "set_grads_to_none": "not needed: it is always so",
    "validation_scheduler": "use --sampler",
    "validation_images": "use --num_validation_images and --validation_prompt",
    "convert_linear": "use --where linear",
    "convert_attn2": "use --where linear-cross",
    "convert_up_block": "use --where linear-up",
}
"""Their flags that are not here, each with what to do instead."""
