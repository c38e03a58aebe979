"""The layouts of others, as tables: our name, theirs, and how the axes move where they do.

`*` stands for the number of a block, stage or unit (`**` for one of two digits), {a,b} for the one and the other on both sides,
{a+b} for the parts that ours holds one after another. Axes: o out, i in, h x d heads, p x q patch, c channels, y x x a kernel.
"""

from typing import Any, Literal, NamedTuple

from vitscale.weights.rules import Rule, read_rules

# google-research/vision_transformer; the hybrids' ResNet counts from 1 (models_resnet.py).
OFFICIAL = """
cls_token                          cls
pos_embed.table                    Transformer/posembed_input/pos_embedding
patch_embed.proj.weight            embedding/kernel                                                   o (p q c) -> p q c o
patch_embed.proj.bias              embedding/bias
blocks.*.norm{1,2}.{weight,bias}   Transformer/encoderblock_*/LayerNorm_{0,2}/{scale,bias}
blocks.*.attention.qkv.weight      Transformer/encoderblock_*/Attention_1/{query+key+value}/kernel    (h d) i -> i h d
blocks.*.attention.qkv.bias        Transformer/encoderblock_*/Attention_1/{query+key+value}/bias      (h d) -> h d
blocks.*.attention.out.weight      Transformer/encoderblock_*/Attention_1/out/kernel                  o (h d) -> h d o
blocks.*.attention.out.bias        Transformer/encoderblock_*/Attention_1/out/bias
blocks.*.mlp.fc{1,2}.weight        Transformer/encoderblock_*/MlpBlock_3/Dense_{0,1}/kernel           o i -> i o
blocks.*.mlp.fc{1,2}.bias          Transformer/encoderblock_*/MlpBlock_3/Dense_{0,1}/bias
norm.{weight,bias}                 Transformer/encoder_norm/{scale,bias}
{pre_logits.fc,head}.weight        {pre_logits,head}/kernel                                           o i -> i o
{pre_logits.fc,head}.bias          {pre_logits,head}/bias
""".replace("Attention_1", "MultiHeadDotProductAttention_1")
OFFICIAL_STEM = """
stem.root.weight                           conv_root/kernel                      o i y x -> y x i o
stem.norm.{weight,bias}                    gn_root/{scale,bias}                  c -> 1 1 1 c
stem.stages.*.*.conv{1,2,3}.weight         block*/unit*/conv{1,2,3}/kernel       o i y x -> y x i o
stem.stages.*.*.shortcut.0.weight          block*/unit*/conv_proj/kernel         o i y x -> y x i o
stem.stages.*.*.norm{1,2,3}.{weight,bias}  block*/unit*/gn{1,2,3}/{scale,bias}   c -> 1 1 1 c
stem.stages.*.*.shortcut.1.{weight,bias}   block*/unit*/gn_proj/{scale,bias}     c -> 1 1 1 c
"""

# google-research/big_vision numbers a block's layers by kind and adds positions before the class token joins.
BIG_VISION = (
    OFFICIAL.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
    .replace("Attention_1", "Attention_0")
    .replace("MlpBlock_3", "MlpBlock_0")
    .replace("LayerNorm_{0,2}", "LayerNorm_{0,1}")
)
BIG_VISION_POOL = """
attention_pool.probe                     MAPHead_0/probe
attention_pool.q.weight                  MAPHead_0/MultiHeadDotProductAttention_0/query/kernel           (h d) i -> i h d
attention_pool.q.bias                    MAPHead_0/MultiHeadDotProductAttention_0/query/bias             (h d) -> h d
attention_pool.kv.weight                 MAPHead_0/MultiHeadDotProductAttention_0/{key+value}/kernel     (h d) i -> i h d
attention_pool.kv.bias                   MAPHead_0/MultiHeadDotProductAttention_0/{key+value}/bias       (h d) -> h d
attention_pool.out.weight                MAPHead_0/MultiHeadDotProductAttention_0/out/kernel             o (h d) -> h d o
attention_pool.out.bias                  MAPHead_0/MultiHeadDotProductAttention_0/out/bias
attention_pool.norm.{weight,bias}        MAPHead_0/LayerNorm_0/{scale,bias}
attention_pool.mlp.fc{1,2}.weight        MAPHead_0/MlpBlock_0/Dense_{0,1}/kernel                         o i -> i o
attention_pool.mlp.fc{1,2}.bias          MAPHead_0/MlpBlock_0/Dense_{0,1}/bias
"""

# google-research/big_transfer, counted from 1.
BIT_NPZ = """
root.weight                           resnet/root_block/standardized_conv2d/kernel             o i y x -> y x i o
stages.*.*.norm{1,2,3}.{weight,bias}  resnet/block*/unit**/{a,b,c}/group_norm/{gamma,beta}
stages.*.*.conv{1,2,3}.weight         resnet/block*/unit**/{a,b,c}/standardized_conv2d/kernel  o i y x -> y x i o
stages.*.*.shortcut.weight            resnet/block*/unit**/a/proj/standardized_conv2d/kernel   o i y x -> y x i o
norm.{weight,bias}                    resnet/group_norm/{gamma,beta}
head.weight                           resnet/head/conv2d/kernel                                o i -> 1 1 i o
head.bias                             resnet/head/conv2d/bias
"""

# timm's VisionTransformer; with the pre-logits that timm once had and the tutorials made after it still have,
# and with the names of LayerScale in DeiT's own files.
TIMM = """
cls_token                                   cls_token
pos_embed.table                             pos_embed
patch_embed.proj.weight                     patch_embed.proj.weight                 o (p q c) -> o c p q
patch_embed.proj.bias                       patch_embed.proj.bias
blocks.*.norm{1,2}.{weight,bias}            blocks.*.norm{1,2}.{weight,bias}
blocks.*.attention.{qkv,out}.{weight,bias}  blocks.*.attn.{qkv,proj}.{weight,bias}
blocks.*.scale{1,2}.factor                  blocks.*.ls{1,2}.gamma
blocks.*.scale{1,2}.factor                  blocks.*.gamma_{1,2}
blocks.*.mlp.fc{1,2}.{weight,bias}          blocks.*.mlp.fc{1,2}.{weight,bias}
norm.{weight,bias}                          norm.{weight,bias}
attention_pool.probe                        attn_pool.latent
attention_pool.{q,kv,out}.{weight,bias}     attn_pool.{q,kv,proj}.{weight,bias}
attention_pool.norm.{weight,bias}           attn_pool.norm.{weight,bias}
attention_pool.mlp.fc{1,2}.{weight,bias}    attn_pool.mlp.fc{1,2}.{weight,bias}
pre_logits.fc.{weight,bias}                 pre_logits.fc.{weight,bias}
head.{weight,bias}                          head.{weight,bias}
"""
TIMM_STEM = """
stem.root.weight                            patch_embed.backbone.stem.conv.weight
stem.norm.{weight,bias}                     patch_embed.backbone.stem.norm.{weight,bias}
stem.stages.*.*.conv{1,2,3}.weight          patch_embed.backbone.stages.*.blocks.*.conv{1,2,3}.weight
stem.stages.*.*.norm{1,2,3}.{weight,bias}   patch_embed.backbone.stages.*.blocks.*.norm{1,2,3}.{weight,bias}
stem.stages.*.*.shortcut.0.weight           patch_embed.backbone.stages.*.blocks.*.downsample.conv.weight
stem.stages.*.*.shortcut.1.{weight,bias}    patch_embed.backbone.stages.*.blocks.*.downsample.norm.{weight,bias}
"""
# Of the hybrid with the root alone.
TIMM_ROOT = """
stem.root.weight                            patch_embed.backbone.conv.weight
stem.norm.{weight,bias}                     patch_embed.backbone.norm.{weight,bias}
"""
TIMM_BIT = """
root.weight                                 stem.conv.weight
stages.*.*.conv{1,2,3}.weight               stages.*.blocks.*.conv{1,2,3}.weight
stages.*.*.norm{1,2,3}.{weight,bias}        stages.*.blocks.*.norm{1,2,3}.{weight,bias}
stages.*.*.shortcut.weight                  stages.*.blocks.*.downsample.conv.weight
norm.{weight,bias}                          norm.{weight,bias}
head.weight                                 head.fc.weight                         o i -> o i 1 1
head.bias                                   head.fc.bias
"""

# transformers' ViTForImageClassification.
HUGGINGFACE = """
cls_token                                   vit.embeddings.cls_token
pos_embed.table                             vit.embeddings.position_embeddings
patch_embed.proj.weight                     vit.embeddings.patch_embeddings.projection.weight      o (p q c) -> o c p q
patch_embed.proj.bias                       vit.embeddings.patch_embeddings.projection.bias
blocks.*.norm{1,2}.{weight,bias}            vit.encoder.layer.*.layernorm_{before,after}.{weight,bias}
blocks.*.attention.qkv.{weight,bias}        vit.encoder.layer.*.attention.attention.{query+key+value}.{weight,bias}
blocks.*.attention.out.{weight,bias}        vit.encoder.layer.*.attention.output.dense.{weight,bias}
blocks.*.mlp.fc1.{weight,bias}              vit.encoder.layer.*.intermediate.dense.{weight,bias}
blocks.*.mlp.fc2.{weight,bias}              vit.encoder.layer.*.output.dense.{weight,bias}
norm.{weight,bias}                          vit.layernorm.{weight,bias}
head.{weight,bias}                          classifier.{weight,bias}
"""
# The same as its modules are called since transformers 5, whose state_dict() says so while save_pretrained() does not.
HUGGINGFACE_5 = (
    HUGGINGFACE.replace("encoder.layer.", "layers.")
    .replace("attention.attention.{query+key+value}", "attention.{q_proj+k_proj+v_proj}")
    .replace("attention.output.dense", "attention.o_proj")
    .replace("intermediate.dense", "mlp.fc1")
    .replace("output.dense", "mlp.fc2")
)

# ViTModel, pretrained without a classifier: its pooler is the official models' pre-logits.
HUGGINGFACE_BARE = HUGGINGFACE.replace("vit.", "") + "pre_logits.fc.{weight,bias}  pooler.dense.{weight,bias}"


class Layout(NamedTuple):
    """A way to name and lay out weights."""

    format: Literal["npz", "timm", "hf", "safetensors"]
    kind: str  # of model, within the format
    mark: str  # a tensor that every file in this layout has, and no other
    rules: list[Rule]  # none: the names are ours
    options: dict[str, Any] = {}  # noqa: RUF012  (of the config, that such files have and do not tell)


BLOCK = "Transformer/encoderblock_0/MultiHeadDotProductAttention"
TIMM_ARITHMETIC = {"gelu": "exact", "resnet_eps": "timm"}
HUGGINGFACE_ARITHMETIC = {"gelu": "exact", "norm_eps": 1e-12}
LAYOUTS = (
    Layout("npz", "vit", f"{BLOCK}_1/query/kernel", read_rules(OFFICIAL) + read_rules(OFFICIAL_STEM, first=1)),
    Layout("npz", "map", f"{BLOCK}_0/query/kernel", read_rules(BIG_VISION + BIG_VISION_POOL)),
    Layout("npz", "bit", "resnet/root_block/standardized_conv2d/kernel", read_rules(BIT_NPZ, first=1)),
    Layout("timm", "root", "patch_embed.backbone.conv.weight", read_rules(TIMM_ROOT + TIMM), TIMM_ARITHMETIC),
    Layout("timm", "hybrid", "patch_embed.backbone.stem.conv.weight", read_rules(TIMM + TIMM_STEM), TIMM_ARITHMETIC),
    Layout("timm", "vit", "blocks.0.attn.qkv.weight", read_rules(TIMM), {"gelu": "exact"}),
    Layout("timm", "bit", "stem.conv.weight", read_rules(TIMM_BIT), {"resnet_eps": "timm"}),
    Layout("hf", "vit", "vit.encoder.layer.0.output.dense.weight", read_rules(HUGGINGFACE), HUGGINGFACE_ARITHMETIC),
    Layout("hf", "bare", "encoder.layer.0.output.dense.weight", read_rules(HUGGINGFACE_BARE), HUGGINGFACE_ARITHMETIC),
    Layout("hf", "modules", "vit.layers.0.mlp.fc2.weight", read_rules(HUGGINGFACE_5), HUGGINGFACE_ARITHMETIC),
    Layout("safetensors", "vit", "blocks.0.attention.qkv.weight", []),
    Layout("safetensors", "bit", "stages.0.0.conv1.weight", []),
)
