#!/bin/sh
# Make the reports behind docs/benchmarks.md, and the image of crops:
#     sh benchmarks/quality.sh HOLDOUT FOREIGN [x4] [x2] [jpeg] [crispness]
# HOLDOUT is the folder of the training images, FOREIGN that of foreign_images.py. Without names, all reports are made.
set -efu
holdout=$1 foreign=$2
shift 2
for part in "$@"; do
	case $part in x4 | x2 | jpeg | crispness) ;; *) echo "$part: expected x4, x2, jpeg or crispness" >&2 && exit 2 ;; esac
done
parts=" ${*:-x4 x2 jpeg crispness} "
general="bicubic lanczos waifu2x-cunet cugan-se-conservative animevideov3 span-ch48"
denoising="bicubic waifu2x-cunet-denoise3 cugan-se-denoise3x animevideov3 x4plus-anime"
sheet="--sheet docs/images/peers.png --cell 288 --columns waifu2x-cunet x4plus-anime span-ch48 x4-tiny x4-base x4-base@1.0 --show
renpy-cg-5.webp:350,18,96 renpy-cg-5.webp:48,133,96 gdquest-scene-5.webp:8,268,96 *E22P10.webp:208,168,96 notionists-002.webp:18,103,96"

wanted() {
	case $parts in *" $1 "*) ;; *) return 1 ;; esac
}

measure() {
	python benchmarks/quality.py $images --count 16 --side 112 --threads 1 "$@" # $images and the lists are split into words
}

for name in holdout foreign; do
	images=$foreign crops=
	if [ $name = holdout ]; then
		images="$holdout --recipe training/configs/tiny-x4-cpu.toml" crops=$sheet
	fi
	if wanted x4; then
		measure --name $name-x4 --peers $general x4plus-anime dat-light $crops --models x4-base x4-base@1.0 x4-base+ensemble x4-tiny x4-tiny@1.0
	fi
	if wanted x2; then
		measure --name $name-x2 --peers $general --scale 2 --models x2-tiny x4-base
	fi
	if wanted jpeg; then
		for quality in 75 50; do
			measure --name $name-jpeg$quality --jpeg $quality --methods bicubic --peers $denoising --models x4-base x4-tiny-cleanup
		done
	fi
	if wanted crispness; then
		measure --name $name-crispness --peers bicubic --models x4-base x4-base@0.1 x4-base@0.2 x4-base@0.3 x4-base@0.4 x4-base@0.5 \
			x4-base@0.6 x4-base@0.7 x4-base@0.8 x4-base@0.9 x4-base@1.0
	fi
done
