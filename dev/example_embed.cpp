// example_embed.cpp: the same from C++; a unique_ptr destroys the trainer whichever way it is left.
//
//     make lib && c++ -I. dev/example_embed.cpp -L. -lgpt2sp -Wl,-rpath,. -o build/example_embed
//     build/example_embed SHARDS.tok CHECKPOINT RUN STEPS
//
// With an installed library: c++ example_embed.cpp $(pkg-config --cflags --libs gpt2_sp) -o example_embed
#include <gpt2_sp.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

struct Trainer : std::unique_ptr<gpt2_sp, decltype(&gpt2_sp_destroy)> {
    explicit Trainer(const std::map<std::string, std::string>& settings) : unique_ptr(nullptr, gpt2_sp_destroy) {
        gpt2_sp_failure failure = {GPT2_SP_NO_MEMORY, "out of memory"};
        std::unique_ptr<gpt2_sp_options, decltype(&gpt2_sp_options_free)> options(
            gpt2_sp_options_new(), gpt2_sp_options_free);
        for (const auto& one : settings)
            if (!options || gpt2_sp_set(options.get(), one.first.c_str(), one.second.c_str(), &failure) != 0)
                throw std::runtime_error(failure.text);
        reset(gpt2_sp_create(options.get(), &failure));
        if (!*this) throw std::runtime_error(failure.text);
    }
    void must(int64_t code) const {
        if (code < 0) throw std::runtime_error(gpt2_sp_error(get()));
    }
};

int main(int argc, char** argv) try {
    if (argc != 5) throw std::runtime_error("usage: example_embed SHARDS.tok CHECKPOINT RUN STEPS");
    Trainer trainer({{"data", argv[1]}, {"val-data", argv[1]}, {"init-from", argv[2]}, {"out", argv[3]},
        {"steps", argv[4]}, {"seq-len", "128"}, {"sp", "2"}, {"lr", "1e-3"}});
    gpt2_sp_stats stats = {};
    stats.size = sizeof stats;
    while (gpt2_sp_steps(trainer.get()) < std::atoi(argv[4])) {
        trainer.must(gpt2_sp_step(trainer.get(), &stats));
        std::printf("step %d: loss %.4f\n", (int)stats.step, stats.loss);
    }
    double loss = 0;
    trainer.must(gpt2_sp_validate(trainer.get(), 4, &loss));
    trainer.must(gpt2_sp_save(trainer.get()));
    std::printf("validation loss %.4f, saved in %s\n", loss, argv[3]);
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
