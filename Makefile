# gpt2_sp. `make` builds ./train_gpt2_sp and, where nvcc is, ./train_gpt2_spcu, and says what it found; `make help` lists the rest.
#
#     make                        the trainer in fp32, for the processor it is built on; the GPU program, for every GPU from sm_80 on
#     make GPU=                   without the GPU program
#     make GPU_ARCH=90a           the GPU program for one architecture only, in a third of the time
#     make REAL=double            the same in fp64, to prove the mathematics
#     make CC=clang               another compiler
#     make MARCH=x86-64-v3        for other processors than this one
#     make CC=aarch64-linux-gnu-gcc MARCH=neoverse-n2 GPU=     for AArch64, on any machine
#     make CFLAGS='-O1 -g'        other optimisation; EXTRA=... adds to the flags instead
#     make HAS_NCCL=              the GPU program without NCCL: the GPUs of one process only
#     make HAS_OPENMP=            one thread per rank, whatever the compiler can do
#     make install PREFIX=/opt/x  programs, libraries, header, manual; DESTDIR=... before PREFIX, LIBDIR=lib64 for lib
#
# Each combination of these is built in a folder of its own, build/<compiler>-<real>-<sum of the flags>,
# so that they never mix; ./train_gpt2_sp is a copy of the one asked for last.

REAL   ?= float
MARCH  ?= native
CFLAGS ?= -O3
PREFIX ?= /usr/local
LIBDIR ?= lib
ifeq ($(origin CC),default)
  CC := $(shell for c in gcc clang cc; do command -v $$c > /dev/null && echo $$c && break; done)
endif

# ===== what this machine has =====================================================================

# $(call works,FLAGS,PROGRAM): does CC compile and link it?
works = $(shell printf '%b\n' '$(2)' | $(CC) -x c - $(1) -o /dev/null > /dev/null 2>&1 && echo yes)

ifneq ($(CC),)
  HAS_CC     := $(call works,,int main(void) { return 0; })
  FOR_MARCH  := $(firstword $(foreach flag,-march=$(MARCH) -mcpu=$(MARCH),$(if $(call works,$(flag),int main(void) { return 0; }),$(flag))))
  HAS_OPENMP := $(call works,-fopenmp,\0043include <omp.h>\nint main(void) { return omp_get_max_threads() == 0; })
  HAS_ZLIB   := $(call works,-lz,\0043include <zlib.h>\nint main(void) { return zlibVersion() == 0; })
  IS_CLANG   := $(findstring clang,$(shell $(CC) --version 2> /dev/null))
endif
NVCC := $(shell command -v nvcc 2> /dev/null)
VERSION := $(shell sed -n 's/^\#define GPT2_SP_VERSION "\(.*\)"/\1/p' train_gpt2_sp.c)
MAJOR   := $(firstword $(subst ., ,$(VERSION)))
comma := ,
GPU  ?= $(NVCC)
# NCCL, which joins the GPUs of several processes, where the toolkit or the system has it
CUDA := $(patsubst %/bin/,%,$(dir $(NVCC)))
ifneq ($(NVCC),)
  HAS_NCCL := $(call works,-I$(CUDA)/include -L$(CUDA)/lib64 -L$(CUDA)/lib -lnccl,\0043include <nccl.h>\nint main(void) { int v; return ncclGetVersion(&v) != 0; })
endif

# ===== flags =====================================================================================

# FOR_MARCH: x86 compilers know a processor by -march, those for ARM some by -mcpu alone. -fno-trapping-math: the loops over exp_real,
# which limits its argument, become vector code without AVX-512's masks too; no result changes.

ifeq ($(filter $(REAL),float double),)
  $(error REAL=$(REAL): expected float or double)
endif
FLAGS := -std=c11 $(CFLAGS) $(FOR_MARCH) -ffp-contract=fast -fno-math-errno -fno-trapping-math \
         $(if $(HAS_OPENMP),-fopenmp,-fopenmp-simd) -Wall -Wextra -Wpedantic
FLAGS += $(if $(IS_CLANG),-Wno-pass-failed)   # a remark about speed, not about the program
FLAGS += $(if $(filter double,$(REAL)),-DGPT2_SP_REAL_BYTES=8) $(EXTRA)
FLAGS := $(strip $(FLAGS))
LIBS  := -lz -lm -lpthread
GPU_LIBS := -lcublasLt $(if $(HAS_NCCL),-L$(CUDA)/lib64 -L$(CUDA)/lib -lnccl) $(LIBS)
# What a program needs besides a static library; OpenMP's runtime by its name, so that the program's own compiler does not matter.
STATIC_LIBS     := $(strip $(if $(HAS_OPENMP),$(if $(IS_CLANG),-L$(abspath $(shell $(CC) -print-resource-dir)/../..) -lomp,-lgomp)) $(LIBS))
GPU_STATIC_LIBS := -L$(CUDA)/lib64 -L$(CUDA)/lib -lcudart_static -lcublasLt $(if $(HAS_NCCL),-lnccl) -lgomp $(LIBS) -ldl -lrt -lstdc++
GPU_ARCH ?=
GPU_FOR  := $(if $(GPU_ARCH),sm_$(GPU_ARCH),sm_80$(comma) sm_90a and later ones)
NVCCFLAGS := -O3 -std=c++17 $(if $(GPU_ARCH),-gencode=arch=compute_$(GPU_ARCH)$(comma)code=sm_$(GPU_ARCH),--threads 2 \
    -gencode=arch=compute_90a$(comma)code=sm_90a -gencode=arch=compute_80$(comma)code=[sm_80$(comma)compute_80]) \
    $(if $(filter-out 90a,$(GPU_ARCH)),-DATTN_HOPPER=0) $(if $(HAS_NCCL),-DGPT2_SP_NCCL) -Xptxas -v -Xcompiler -fopenmp,$(if $(FOR_MARCH),$(FOR_MARCH)$(comma))-ffp-contract=fast,-fno-math-errno,-fno-trapping-math,-w
# GPUs here, where a goal needs them; and what a target that needs so many lacks: then it is skipped, with the reason, before anything is built.
GPUS  := $(if $(filter %-gpu bench-gpu2 bench-schedules,$(MAKECMDGOALS)),$(shell nvidia-smi -L 2> /dev/null | grep -c '^GPU'))
lacks  = $(if $(NVCC),$(if $(filter-out $(wordlist 1,$(1),0 1),$(GPUS)),,it needs $(word $(1),one two) GPU$(if $(filter 2,$(1)),s)$(comma) nvidia-smi lists $(GPUS)),nvcc is not installed)
# A command where so many GPUs are, else the line that says why not.
with_gpus = $(if $(call lacks,$(1)),echo 'skip make $@: $(call lacks,$(1))',$(2))
# The same for tests, which look for GPUs themselves.
with_nvcc = $(if $(NVCC),$(1),echo 'skip make $@: nvcc is not installed'; echo '0 passed$(comma) 0 failed$(comma) 1 skipped')
BUILD := build/$(notdir $(firstword $(CC)))-$(REAL)-$(shell { echo '$(FLAGS)'; $(CC) --version; } 2> /dev/null | cksum | cut -d ' ' -f 1)

# ===== programs and libraries ====================================================================

.PHONY: all capabilities path lib install uninstall dist test test-gpu test-gpu2 sanitize-gpu bench bench-gpu bench-gpu2 bench-schedules lecture lecture-table \
        lecture-table-gpu demo check mutate fuzz clean help FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: capabilities train_gpt2_sp $(if $(GPU),train_gpt2_spcu)   ## the trainer, and the GPU program where nvcc is (the default)

capabilities:
ifeq ($(HAS_CC),)
	@echo '✗ no C compiler that works: install gcc or clang, for example with  apt-get install gcc'; exit 1
else ifeq ($(HAS_ZLIB),)
	@echo '✓ compiler   $(CC)'
	@echo '✗ no zlib headers: install them, for example with  apt-get install zlib1g-dev'; exit 1
else
	@echo '✓ compiler   $(CC), $(REAL)$(if $(FOR_MARCH), for $(MARCH)), $(BUILD)'
	@echo '✓ zlib'
	@echo '$(if $(HAS_OPENMP),✓ OpenMP     several threads per rank,✗ OpenMP     not found: one thread per rank)'
	@echo '$(if $(NVCC),$(if $(GPU),✓ nvcc       $(NVCC): the GPU program$(comma) for $(GPU_FOR) (about a minute; make GPU= leaves it out),- nvcc       $(NVCC)$(comma) not used),✗ nvcc       not found: no GPU program)'
	$(if $(and $(NVCC),$(GPU)),@echo '$(if $(HAS_NCCL),✓ NCCL       GPUs of several processes,✗ NCCL       not found: GPUs of one process only)')
endif

path:   # where this combination of flags is built
	@echo $(BUILD)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/library.o: train_gpt2_sp.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MMD -MP -fPIC -fvisibility=hidden -DGPT2_SP_NO_MAIN -c $< -o $@

# The commit that stands in what gpt2_sp_build tells: an object of its own, so that a commit compiles nothing else again. In what
# `make dist` packs, dev/commit has it.
$(BUILD)/commit.c: FORCE
	@mkdir -p $(@D)
	@commit=$$(sed -n '/[$$]/!p' dev/commit 2> /dev/null | cut -c 1-12); \
	[ "$$commit" ] || commit=$$(git --no-optional-locks describe --always --exclude '*' --abbrev=12 --dirty=+changes 2> /dev/null); \
	echo "extern const char gpt2_sp_commit[]; const char gpt2_sp_commit[] __attribute__((visibility(\"hidden\"))) = \"$$commit\";" > $@.$$$$; \
	if cmp -s $@.$$$$ $@; then rm $@.$$$$; else mv $@.$$$$ $@; fi

$(BUILD)/commit.o: $(BUILD)/commit.c
	$(CC) $(FLAGS) -fPIC -c $< -o $@

$(BUILD)/train_gpt2_sp: $(BUILD)/commit.o

$(BUILD)/%: $(BUILD)/%.o
	$(CC) $(FLAGS) $^ -o $@ $(LIBS)

# The public header by itself: the part of train_gpt2_sp.c above HEADER ENDS HERE.
$(BUILD)/gpt2_sp.h: train_gpt2_sp.c
	@mkdir -p $(@D)
	@{ echo '/* gpt2_sp.h, version $(VERSION): a trainer for small GPT-2 models on long documents, in a program of yours.'; \
	   echo ' *'; echo ' *     cc program.c $$(pkg-config --cflags --libs gpt2_sp)          for GPUs: gpt2_spcu'; echo ' *'; \
	   echo ' * Made from train_gpt2_sp.c by `make lib`. MIT License, $(shell sed -n 's/^Copyright/copyright/p' LICENSE). */'; \
	   sed -n '/^#ifndef GPT2_SP_H$$/,/^#endif   .. GPT2_SP_H$$/p' $<; } > $@

# One object, for the linker leaves out a member of an archive that only a weak reference asks for.
$(BUILD)/libgpt2sp.a: $(BUILD)/library.o $(BUILD)/commit.o
	$(LD) -r $^ -o $(BUILD)/gpt2_sp.o
	rm -f $@ && $(AR) rcs $@ $(BUILD)/gpt2_sp.o

# Programs ask for the soname, which is the same for all versions of a major one.
$(BUILD)/libgpt2sp.so.$(MAJOR): $(BUILD)/library.o $(BUILD)/commit.o
	$(CC) $(FLAGS) -shared -Wl,-soname,$(@F) $^ -o $@ $(LIBS)

-include $(wildcard $(BUILD)/*.d $(BUILD)/dev/*.d)

# The names at the top of the tree: replaced in one move, so that a running program keeps its own.
train_gpt2_sp test_gpt2_sp libgpt2sp.a libgpt2sp.so.$(MAJOR) gpt2_sp.h: %: $(BUILD)/% FORCE
	@cmp -s $< $@ || { cp $< $@.new && mv $@.new $@; }

libgpt2sp.so libgpt2spcu.so: %: %.$(MAJOR)
	@[ "$$(readlink $@)" = $< ] || ln -sf $< $@

lib: gpt2_sp.h libgpt2sp.a libgpt2sp.so $(if $(GPU),libgpt2spcu.a libgpt2spcu.so)   ## the libraries and gpt2_sp.h, for programs that embed the trainer; where nvcc is, libgpt2spcu too

# The GPU program. dev/check_ptxas.sh makes an error of what ptxas only remarks upon: matrix instructions of an attention kernel that were put
# one after the other (C75xx), which costs half of its speed in silence, and registers that spill beyond the kernel's figure.
build/nvcc.flags: FORCE   # changes when they do
	@mkdir -p build
	@echo '$(NVCCFLAGS)' | cmp -s - $@ || echo '$(NVCCFLAGS)' > $@

build/train_gpt2_spcu.o: train_gpt2_sp.cu train_gpt2_sp.c $(wildcard data/*.h) dev/check_ptxas.sh build/nvcc.flags
	@$(if $(NVCC),:,echo 'the GPU program needs nvcc$(comma) which is not installed' >&2; exit 1)
	$(NVCC) $(NVCCFLAGS) -Xcompiler -fPIC,-fvisibility=hidden -c $< -o $@ > build/nvcc.log 2>&1 || { cat build/nvcc.log; rm -f $@; exit 1; }
	@sh dev/check_ptxas.sh build/nvcc.log $$($(NVCC) --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') || { rm -f $@; exit 1; }

train_gpt2_spcu: build/train_gpt2_spcu.o $(BUILD)/commit.o   ## the GPU program (needs nvcc)
	$(NVCC) $(NVCCFLAGS) $^ -o $@.new $(GPU_LIBS) && mv $@.new $@

# The GPU libraries are of the same object, without its main. The shared one shows nothing of the CUDA runtime that it holds.
build/libgpt2spcu.o: build/train_gpt2_spcu.o $(BUILD)/commit.o
	objcopy --localize-symbol=main --localize-symbol=GPU_DEVICE $< $@.main
	$(LD) -r $@.main $(BUILD)/commit.o -o $@ && rm $@.main

libgpt2spcu.a: build/libgpt2spcu.o
	rm -f $@ && $(AR) rcs $@ $<

libgpt2spcu.so.$(MAJOR): build/libgpt2spcu.o
	@echo '{ global: gpt2_sp_*; local: *; };' > build/exported.map
	$(NVCC) $(NVCCFLAGS) -shared -Xlinker -soname,$@,--version-script,build/exported.map $< -o $@.new $(GPU_LIBS) && mv $@.new $@

build/dev/bench_%: dev/bench_%.cu dev/bench_gpu.h train_gpt2_sp.cu train_gpt2_sp.c $(wildcard data/*.h) build/nvcc.flags
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $< -o $@ $(GPU_LIBS) > $@.log 2>&1 || { cat $@.log; exit 1; }

# The tests built against the GPU program. With ATTN_ALL_ARRIVE the attention kernels' threads each speak for themselves (attention kernels, section 7),
# which compute-sanitizer can follow; -diag-suppress: remarks of nvcc's C++ front end about tests that are C.
TEST_GPU := $(NVCC) $(NVCCFLAGS) -diag-suppress 128,177,550 -x cu -DGPT2_SP_GPU
TEST_GPU_SOURCES := test_gpt2_sp.c $(wildcard dev/test_*.h) dev/test_attention.cu train_gpt2_sp.cu train_gpt2_sp.c $(wildcard data/*.h)
test_gpt2_spcu build/test_gpt2_spcu-sanitize: $(TEST_GPU_SOURCES)
	@mkdir -p build
	$(TEST_GPU) $(if $(findstring sanitize,$@),-lineinfo -DATTN_ALL_ARRIVE) $< -o $@ $(GPU_LIBS) > build/nvcc.$(@F).log 2>&1 || { cat build/nvcc.$(@F).log; exit 1; }

# For a machine without a GPU, where its host's tests run and no kernel does: the device's code becomes PTX and no more, which the tests
# share with the program that is compiled for every architecture.
build/test_gpt2_spcu-host: $(TEST_GPU_SOURCES)
	@mkdir -p build
	$(NVCC) -O1 -std=c++17 -gencode=arch=compute_90a$(comma)code=compute_90a -Xcicc -O0 $(filter -DGPT2_SP_NCCL,$(NVCCFLAGS)) -Xcompiler \
	    -fopenmp,$(if $(FOR_MARCH),$(FOR_MARCH)$(comma))-ffp-contract=fast,-fno-math-errno,-fno-trapping-math,-w \
	    -diag-suppress 128,177,550 -x cu -DGPT2_SP_GPU $< -o $@ $(GPU_LIBS) > build/nvcc.$(@F).log 2>&1 || { cat build/nvcc.$(@F).log; exit 1; }

test-gpu: $(if $(NVCC),test_gpt2_spcu)   ## the GPU program against fp64 and the CPU reference (needs a GPU)
	@$(call with_nvcc,./$<)

test-gpu2: $(if $(NVCC),train_gpt2_spcu)   ## the GPU program over two processes and NCCL (needs two GPUs)
	@$(call with_nvcc,sh dev/test_gpu_processes.sh ./$<)

# The small suite under compute-sanitizer, six minutes. synccheck and racecheck take the tests of the kernels alone: a whole step adds none but
# cuBLASLt's, with which they take far longer. Not initcheck: it does not see what the tensor copy engine writes, and by it cuBLASLt and the
# attention kernels write their results; the tests poison every output instead.
sanitize-gpu: $(if $(call lacks,1),,build/test_gpt2_spcu-sanitize)   ## the small suite of test-gpu under compute-sanitizer: memcheck, racecheck, synccheck
	@$(if $(call lacks,1),$(call with_gpus,1); exit 0;) \
	command -v compute-sanitizer > /dev/null || { echo 'skip make $@: compute-sanitizer is not on PATH'; exit 0; }; \
	for run in memcheck 'synccheck kernels oracle' 'racecheck kernels oracle'; do \
	    set -- $$run; tool=$$1; shift; echo "==== $$tool"; \
	    compute-sanitizer --tool $$tool --error-exitcode 1 ./$< quick "$$@" > build/sanitize-$$tool.log || status=1; \
	    grep -a 'SUMMARY\|passed,\|^FAIL' build/sanitize-$$tool.log | tail -n 20; \
	done; exit $${status:-0}

bench-gpu: $(if $(call lacks,1),,build/dev/bench_attention train_gpt2_spcu)   ## attention, steps and memory beside PyTorch, three minutes: BENCH='--quick --only steps'
	@$(call with_gpus,1,python3 dev/bench_gpu.py $(BENCH))

bench-schedules: $(if $(call lacks,1),,build/dev/bench_schedules)   ## all schedules at 2, 4, 8 ranks, projected from the times of their ops on one GPU: BENCH='--link-gbs 50'
	@$(call with_gpus,1,$< --json build/bench_schedules.json $(BENCH))

bench-gpu2: $(if $(call lacks,2),,train_gpt2_spcu)   ## two GPUs against one and against PyTorch's context_parallel, five minutes (needs two GPUs): BENCH='--quick'
	@$(call with_gpus,2,python3 dev/bench_gpu2.py $(BENCH))

# ===== what to do with them ======================================================================

# What goes where stands in dev/install.sh, once for both.
installation = PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' LIBDIR='$(LIBDIR)' VERSION='$(VERSION)' GPU='$(GPU)' CUDA='$(CUDA)' \
    STATIC_LIBS='$(STATIC_LIBS)' GPU_STATIC_LIBS='$(GPU_STATIC_LIBS)' sh dev/install.sh

install: train_gpt2_sp $(if $(GPU),train_gpt2_spcu) lib   ## programs, libraries, header, pkg-config and CMake files, manual under PREFIX (/usr/local)
	@$(installation) install

uninstall:   ## remove from PREFIX what install put there
	@$(installation) uninstall

# The files of the last commit, the same bytes wherever it is made.
dist:   ## build/gpt2_sp-VERSION.tar.gz, with which everything builds without a network
	@mkdir -p build
	@git archive --format=tar --prefix=gpt2_sp-$(VERSION)/ HEAD | gzip -9n > build/gpt2_sp-$(VERSION).tar.gz
	@echo build/gpt2_sp-$(VERSION).tar.gz

demo:   ## from the sources and documents of this tree to a trained model, in two minutes
	@sh scripts/demo.sh

test:   ## all tests (half an hour on 2 cores); its last line is the total
	@MAKE='$(MAKE)' sh dev/run_tests.sh

check: train_gpt2_sp   ## only the fault injection into checkpoint writes (needs strace)
	@sh dev/test_faults.sh ./train_gpt2_sp

mutate:   ## plant the faults of dev/mutations.txt one at a time: does a test notice? at most 40 minutes on 2 cores: SAMPLE=30 for some, JOBS=1
	@CC='$(CC)' python3 dev/mutate.py $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(JOBS),--jobs $(JOBS)) $(if $(ONLY),--only '$(ONLY)')

fuzz:   ## the fuzzers of the file readers, without libFuzzer: ROUNDS=1000000 for more
	@MAKE='$(MAKE)' ROUNDS='$(ROUNDS)' sh dev/run_tests.sh fuzz

bench: $(BUILD)/dev/bench_cpu   ## speed of the CPU program against the cores' peak
	@$<

lecture: train_gpt2_sp test_gpt2_sp $(BUILD)/dev/lecture_table   ## run the commands of dev/lecture.md: does each print what stands there?
	@sh dev/check_readme.sh --long dev/lecture.md

lecture-table: $(BUILD)/dev/lecture_table   ## memory, time and forward calls with checkpointing and sequence parallelism
	@$< $(BENCH)

build/dev/lecture_table_gpu: dev/lecture_table.c train_gpt2_sp.cu train_gpt2_sp.c $(wildcard data/*.h) build/nvcc.flags
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -diag-suppress 177 -x cu -DGPT2_SP_GPU $< -o $@ $(GPU_LIBS) > $@.log 2>&1 || { cat $@.log; exit 1; }

lecture-table-gpu: $(if $(call lacks,1),,build/dev/lecture_table_gpu)   ## the same on one GPU or two, GPT-2 124M at 8k and 32k: BENCH='--quick'
	@$(call with_gpus,1,$< --json build/lecture_table_gpu.json $(BENCH))

clean:   ## remove what was built; runs/ stays
	rm -rf build/*-float-* build/*-double-* build/test build/mutate build/standin build/demo build/dev build/nvcc.* build/*gpt2_spcu.o build/test_gpt2_spcu-* build/libgpt2spcu.o build/exported.map build/*.tar.gz
	rm -f train_gpt2_sp test_gpt2_sp train_gpt2_spcu test_gpt2_spcu gpt2_sp.h libgpt2sp.* libgpt2spcu.*

help:
	@sed -n 's/^\([a-z0-9_-]*\):.*## /  make \1\t/p' Makefile | expand -t 24
