/** What watches a training: progress, metrics, curves, answers. */
package org.meteora.train.listener;
