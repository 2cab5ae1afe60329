"""Every key of a run config, with its default; the other configs are short differences from this one.

A new key is off by default, as 0 or an empty text: runs of before it was there go on.
"""

from ml_collections import ConfigDict

from jaxcxr.data import settings
from jaxcxr.evaluation import settings as evaluation


def get_config() -> ConfigDict:
    """A config that lacks only a base checkpoint or descriptions of networks."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 1000
    config.epochs = 0.0  # in place of steps: how often each image is seen; 0: steps decide
    config.batch_size = 32  # of all devices together
    config.dtype = "float32"  # compute dtype, float32 or bfloat16; weights are float32
    config.method = "diffusion"  # or autoencoder, projection, classifier, consistency, inpainting, controlnet
    config.trainable = r"unet\..*"  # which parameters learn: a regular expression for the whole name
    config.ema_decay = 0.9999
    config.attention = "auto"  # or xla, cudnn, splash, sliced: a kernel for wherever it can serve
    config.remat = "none"  # or blocks, attention: what is computed again for gradients rather than kept
    config.accumulation = 1  # parts that a batch is gone through in, one after the other, to save memory

    config.skip_nonfinite = 0  # steps in a row that may be left out for a loss or gradient that is not finite; 0: stop

    config.mesh = ConfigDict()  # devices on each axis; -1 takes the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.sharding = "replicated"  # of weights and optimizer; or fsdp, fsdp+tensor
    config.ema_sharding = ""  # of the average, where it is to be another than that
    config.ema_memory = "device"  # or host: the average waits there between steps

    config.data = settings.defaults()  # what `jaxcxr prepare` makes of the raw data; the keys are described there
    config.data.path = "runs/data"  # the folder it wrote
    # Further ones with their weights beside its 1, and their caches if it has one: (("runs/more", 0.5),).
    config.data.mixture = ()
    config.data.rebalance = 0.0  # 1: every label is drawn equally often, an image by its rarest; 0: every image
    # csv with the columns id and weight: what a record counts in the loss, sum(weight error) / sum(weight) of a batch.
    config.data.weights = ""
    config.data.conditions = ""  # of config.method = "controlnet": a folder with a picture ID.png a record
    # A local folder for copies of what is in a bucket, made once a host; empty: records are read from the bucket.
    config.data.stage = ""
    config.data.cache = ""  # the folder that `jaxcxr cache` wrote of it; empty: images are encoded on the way

    config.model = ConfigDict()
    config.model.base = ""  # checkpoint of the networks that are not described below; ORG/NAME: one of the hub
    config.model.text_encoder_base = ""  # checkpoint of the text encoder and its tokenizer, where it is another
    # How the base's U-Net takes that one: linear or mlp, a projection of its states, or cross_attention, new keys and
    # values; empty: as it is.
    config.model.text_encoder_fit = ""
    config.model.vae = ConfigDict()  # an architecture, in the words of diffusers' config.json: learnt from scratch
    config.model.unet = ConfigDict()
    config.model.text_encoder = ConfigDict()  # of transformers' config.json, less what the tokenizer decides
    # A classifier of images by itself: {"architecture": …, "classes": (…), "image_size": …, "pretrained": FILE}.
    config.model.classifier = ConfigDict()
    # What an autoencoder learns by besides: {"net": "vgg" or "alex", "backbone": FILE, "heads": FILE}.
    config.model.lpips = ConfigDict()
    config.model.discriminator = ConfigDict()  # {"width": 64}
    config.model.scheduler = ConfigDict()  # what differs from the base's: {'prediction_type': 'v_prediction'}
    config.model.measure_scaling_factor = False  # for an autoencoder of one's own: scale latents to variance 1

    config.prior = ConfigDict()  # pictures of a class that the base draws, learnt beside one's own
    config.prior.path = ""  # a prepared folder of them, which is made where there is none; empty: no prior preservation
    config.prior.prompt = ""  # to draw them by, as samples are drawn
    config.prior.count = 100
    config.prior.weight = 1.0  # of their loss beside that of one's own

    config.augment = ConfigDict()  # of training images, at random up to this much; none is mirrored
    config.augment.rotation = 0.0  # degrees to either side; 0: none, as for the two below
    config.augment.translation = 0.0  # 0.05: a twentieth of the side in any direction
    config.augment.brightness = 0.0  # 0.1: a tenth of the range, lighter or darker

    config.objective = ConfigDict()
    config.objective.error = "mse"  # or l1, huber, pseudo_huber
    config.objective.caption_dropout = 0.1
    config.objective.min_snr_gamma = 0.0  # 5: errors at little noise count less; 0: all alike, as for the four below
    config.objective.offset_noise = 0.0  # 0.1: a share of noise that is the same all over a channel
    config.objective.input_perturbation = 0.0  # 0.1: a share of noise that the network is not asked for
    config.objective.timestep_bias = "none"  # earlier, later: that portion is drawn so many times as often
    config.objective.timestep_bias_multiplier = 1.0
    config.objective.timestep_bias_portion = 0.25
    config.objective.kl_weight = 1e-6
    config.objective.reduction = "mean"  # of an autoencoder's errors over pixels; or sum, as published ones have it
    config.objective.perceptual = ConfigDict()  # weights of its further terms: ssim, lpips, features, adversarial
    config.objective.uncertain = "negative"  # or positive, ignore: what a classifier makes of labels that are neither
    config.objective.class_weights = "none"  # or balanced: a class's positives weigh as much as its negatives

    config.lora = ConfigDict()  # adapters beside layers that are frozen; `trainable` may be empty then
    config.lora.rank = 0  # 4 to 64; 0: none
    config.lora.alpha = 0.0  # they are scaled by alpha / rank; 0: by 1
    config.lora.targets = r"unet\..*\.attn[12]\.(to_[qkv]|to_out\.0)"  # layers, dense or convolutions, by whole name
    config.lora.dora = ""  # of which of them magnitudes are learnt too, in the same way; empty: of none

    config.distillation = ConfigDict()  # of config.method = "consistency", for samples in few steps
    config.distillation.teacher_steps = 50  # of the whole schedule; a step of the teacher is one of them
    config.distillation.guidance = (3.0, 7.0)  # the teacher's scale is drawn from there, for each example

    config.inpainting = ConfigDict()  # of config.method = "inpainting"
    # What is painted anew is drawn from these; one that is there twice is drawn twice as often.
    config.inpainting.masks = ("box", "strokes", "lungs", "whole")

    config.textual_inversion = ConfigDict()  # new words, whose vectors learn; `trainable` may be empty then
    # Each with its number of vectors and, if you like, the words that they start from, in turn:
    # (("<effusion>", 4, "pleural effusion"), ("<left>", 2)); empty: none.
    config.textual_inversion.tokens = ()
    config.textual_inversion.initial = "mean"  # of the vocabulary, for tokens without words; or random, as it varies
    config.textual_inversion.max_norm = 0.0  # of a vector, after each update; 0: any

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or adafactor, lion, schedule_free
    config.optimizer.learning_rate = 1e-4
    # Factors of it by name, for the whole name as in `trainable`; the first that fits: ((r"text_encoder\..*", 0.1),).
    config.optimizer.rates = ()
    config.optimizer.schedule = "constant"  # or cosine
    config.optimizer.warmup_steps = 100
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.mu_dtype = "float32"  # of the first moment; bfloat16 halves its memory
    config.optimizer.clip_norm = 1.0

    config.samples = ConfigDict()
    config.samples.prompts = ("No acute cardiopulmonary process.",)
    config.samples.per_prompt = 4
    config.samples.steps = 50
    config.samples.sampler = ""  # ddim, pndm, dpm++, …; empty: that of the base's scheduler
    config.samples.guidance = 4.0

    config.loggers = ("tensorboard",)  # beside metrics.jsonl and samples/; or wandb, or both, or () for none
    config.log_every = 10  # steps; 0 is never, as for the other `_every`
    config.eval_every = 500
    config.eval_batches = 4
    config.sample_every = 1000
    config.checkpoint_every = 1000
    config.keep = 2  # checkpoints, the last ones; 1 or more

    config.stopping = ConfigDict()  # before the last step, when a value of the evaluations does not get better any more
    config.stopping.metric = "validation_loss"  # or of a classifier validation_auroc, validation_average_precision
    config.stopping.patience = 0  # evaluations without a better value; the best checkpoint is kept; 0: never

    config.evaluation = evaluation.defaults()  # jaxcxr/evaluation/settings.py explains the keys

    config.profile = ConfigDict()  # a trace into the workdir's tensorboard/
    config.profile.steps = 0  # that are traced; 0: none
    config.profile.after = 10  # steps since this start
    return config
