// modeling.h: the program that Transformers runs for an exported model with --center 0, which is no GPT-2
// with LayerNorm. `export` writes it beside config.json as modeling_gpt2_sp.py, whose `auto_map` names its
// classes; from_pretrained(FOLDER, trust_remote_code=True) imports it. This is its only source.
#ifndef GPT2_SP_MODELING_H
#define GPT2_SP_MODELING_H

// The entry of config.json that leads to it.
#define MODELING_AUTO_MAP \
    "\"auto_map\": {\"AutoConfig\": \"modeling_gpt2_sp.GPT2SPConfig\", " \
    "\"AutoModelForCausalLM\": \"modeling_gpt2_sp.GPT2RMSNormLMHeadModel\"}"

// clang-format off
static const char MODELING_PY[] =
    "\"\"\"GPT-2 with RMSNorm in the place of LayerNorm, as gpt2_sp trains it with --center 0.\"\"\"\n"
    "import torch\n"
    "from torch import nn\n"
    "from transformers import GPT2Config, GPT2LMHeadModel\n"
    "\n"
    "\n"
    "class GPT2SPConfig(GPT2Config):\n"
    "    model_type = \"gpt2_sp_rmsnorm\"\n"
    "\n"
    "\n"
    "class GPT2RMSNorm(nn.Module):\n"
    "    \"\"\"x / sqrt(mean(x * x) + eps) * weight + bias over the last axis, in float32 at least.\"\"\"\n"
    "\n"
    "    def __init__(self, size, eps):\n"
    "        super().__init__()\n"
    "        self.weight = nn.Parameter(torch.ones(size))\n"
    "        self.bias = nn.Parameter(torch.zeros(size))\n"
    "        self.eps = eps\n"
    "\n"
    "    def forward(self, x):\n"
    "        y = x.to(torch.promote_types(x.dtype, torch.float32))\n"
    "        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)\n"
    "        return (y * self.weight + self.bias).to(x.dtype)\n"
    "\n"
    "\n"
    "class GPT2RMSNormLMHeadModel(GPT2LMHeadModel):\n"
    "    config_class = GPT2SPConfig\n"
    "\n"
    "    def __init__(self, config):\n"
    "        super().__init__(config)\n"
    "        for block in self.transformer.h:\n"
    "            block.ln_1 = GPT2RMSNorm(config.n_embd, config.layer_norm_epsilon)\n"
    "            block.ln_2 = GPT2RMSNorm(config.n_embd, config.layer_norm_epsilon)\n"
    "        self.transformer.ln_f = GPT2RMSNorm(config.n_embd, config.layer_norm_epsilon)\n";
// clang-format on

#endif
