"""GPT-2, OPT and GPT-NeoX: layer norms and plain MLPs."""

from __future__ import annotations

from typing import Any

from woqfx_llm_runtime.description import MLP, Attention, Description, Layer, Linear, Positions
from woqfx_llm_runtime.families.fields import Fields
from woqfx_llm_runtime.families.parts import ACTIVATIONS, head_sizes, layer_norm, linear
from woqfx_llm_runtime.families.rope import context_of, read_rope


def gpt2(fields: Fields, model: Any) -> Description:
    """GPT-2: learned positions, one weight for query, key and value."""
    hidden, heads = fields.size("n_embd"), fields.size("n_head")
    head_dim, eps = hidden // heads, fields.number("layer_norm_epsilon")
    fields.get("n_inner")  # shapes tell it
    fields.refuse_unless("add_cross_attention", False)
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx")
    scale = head_dim**-0.5 if fields.flag("scale_attn_weights") else 1.0
    activation = fields.choice("activation_function", ACTIVATIONS)

    def layer(i: int) -> Layer:
        name = f"transformer.h.{i}"
        query, key, value = (_conv(f"{name}.attn.c_attn", range(k * hidden, (k + 1) * hidden)) for k in range(3))
        attention = Attention(
            query=query,
            key=key,
            value=value,
            output=_conv(f"{name}.attn.c_proj"),
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            scale=scale / (i + 1) if by_layer else scale,
        )
        mlp = MLP(up=_conv(f"{name}.mlp.c_fc"), down=_conv(f"{name}.mlp.c_proj"), activation=activation)
        return Layer(
            attention,
            mlp,
            input_norm=layer_norm(f"{name}.ln_1", eps),
            mlp_norm=layer_norm(f"{name}.ln_2", eps),
        )

    return Description(
        hidden_size=hidden,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("n_positions"),
        embedding="transformer.wte.weight",
        layers=tuple(layer(i) for i in range(fields.size("n_layer"))),
        head=linear("lm_head"),
        final_norm=layer_norm("transformer.ln_f", eps),
        positions=Positions("transformer.wpe.weight"),
    )


def _conv(module: str, *rows: range) -> Linear:
    """A `Conv1D` of transformers, whose weight lies transposed where it was kept."""
    return Linear(f"{module}.weight", f"{module}.bias", rows, transposed=True)


def opt(fields: Fields, model: Any) -> Description:
    """OPT with norms before attention and MLP, which is every size but 350M."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    fields.refuse_unless("do_layer_norm_before", True)
    fields.refuse_unless("word_embed_proj_dim", hidden)
    fields.size("ffn_dim")
    bias, affine = fields.flag("enable_bias"), fields.flag("layer_norm_elementwise_affine")
    activation, eps = fields.choice("activation_function", ACTIVATIONS), 1e-5  # PyTorch's: OPT's config has none
    final = None if fields.flag("_remove_final_layer_norm") else "model.decoder.final_layer_norm"

    def layer(i: int) -> Layer:
        name = f"model.decoder.layers.{i}"
        attention = Attention(
            query=linear(f"{name}.self_attn.q_proj", bias),
            key=linear(f"{name}.self_attn.k_proj", bias),
            value=linear(f"{name}.self_attn.v_proj", bias),
            output=linear(f"{name}.self_attn.out_proj", bias),
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            scale=(hidden // heads) ** -0.5,
        )
        mlp = MLP(up=linear(f"{name}.fc1", bias), down=linear(f"{name}.fc2", bias), activation=activation)
        return Layer(
            attention,
            mlp,
            input_norm=layer_norm(f"{name}.self_attn_layer_norm", eps, affine=affine),
            mlp_norm=layer_norm(f"{name}.final_layer_norm", eps, affine=affine),
        )

    return Description(
        hidden_size=hidden,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings"),
        embedding="model.decoder.embed_tokens.weight",
        layers=tuple(layer(i) for i in range(fields.size("num_hidden_layers"))),
        head=linear("lm_head"),
        final_norm=None if final is None else layer_norm(final, eps, affine=affine),
        positions=Positions("model.decoder.embed_positions.weight", offset=2),
    )


def gpt_neox(fields: Fields, model: Any) -> Description:
    """GPT-NeoX and Pythia: attention and MLP beside each other; query, key and value of each head lie together."""
    sizes = head_sizes(fields)
    heads, size = sizes["heads"], sizes["head_dim"]
    rope = read_rope(fields, model.gpt_neox.rotary_emb, size, partial=True)
    eps, bias = fields.number("layer_norm_eps"), fields.flag("attention_bias")
    activation, parallel = fields.choice("hidden_act", ACTIVATIONS), fields.flag("use_parallel_residual")
    fields.size("intermediate_size")

    def part(name: str, k: int) -> Linear:
        rows = tuple(range((3 * head + k) * size, (3 * head + k + 1) * size) for head in range(heads))
        return linear(f"{name}.attention.query_key_value", bias, rows)

    def layer(i: int) -> Layer:
        name = f"gpt_neox.layers.{i}"
        attention = Attention(
            query=part(name, 0),
            key=part(name, 1),
            value=part(name, 2),
            output=linear(f"{name}.attention.dense", bias),
            scale=size**-0.5,
            rope=rope,
            **sizes,
        )
        mlp = MLP(
            up=linear(f"{name}.mlp.dense_h_to_4h", True),
            down=linear(f"{name}.mlp.dense_4h_to_h", True),
            activation=activation,
        )
        return Layer(
            attention,
            mlp,
            input_norm=layer_norm(f"{name}.input_layernorm", eps),
            mlp_norm=layer_norm(f"{name}.post_attention_layernorm", eps),
            parallel=parallel,
        )

    return Description(
        hidden_size=fields.size("hidden_size"),
        vocab_size=fields.size("vocab_size"),
        context=context_of(fields),
        embedding="gpt_neox.embed_in.weight",
        layers=tuple(layer(i) for i in range(fields.size("num_hidden_layers"))),
        head=linear("lm_head"),
        final_norm=layer_norm("gpt_neox.final_layer_norm", eps),
    )
