#!/bin/sh
# Networks for benchmarks/lava.py, one of every family: sh benchmarks/lava_networks.sh DIR FOLDER
# DIR holds CIFAR-10 as train/<class>/*.png and validation/<class>/*.png; FOLDER gets FAMILY_RESET_tT.h5.
# snn_resnet20 is whole, with the weights that ship. The others have all their layers at an eighth of the width, and
# learn from the labels for an epoch, at T = 2 and with a hard reset, so that their neurons fire as neurons do.
set -e
data=$1 out=$2
mkdir -p "$out"

export_each() { # FAMILY RESET, and options of `snnzoo export lava` that end in --model-kwargs
    family=$1 reset=$2
    shift 2
    for steps in 2 4; do
        snnzoo export lava "snn_${family}_t4" "$@" reset=$reset --num-steps $steps --input-size 3 32 32 \
            --data-dir "$data" -o "$out/${family}_${reset}_t$steps.h5"
    done
}

for reset in hard soft; do
    export_each resnet20 $reset --pretrained --model-kwargs
done
for family in vgg11 sew_resnet18 preact_resnet18; do
    narrow="channels=(8,16,32,64) stem=cifar"
    [ $family = vgg11 ] && narrow="channels=(16,32,64,64)"
    python train_distill.py --data-dir "$data" --model "snn_${family}_t4" --num-steps 2 --reset hard \
        --model-kwargs $narrow --input-size 3 32 32 --epochs 1 --batch-size 32 --lr 0.05 --no-aug --workers 0 --seed 0 \
        --output "$out/train" --experiment $family
    for reset in hard soft; do
        [ $family$reset = vgg11soft ] && continue  # netx knows no soft reset
        export_each $family $reset --checkpoint "$out/train/$family/model_best.pth.tar" --model-kwargs $narrow
    done
done
