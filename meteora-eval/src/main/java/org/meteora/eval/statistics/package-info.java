/** Confidence intervals and tests of differences. */
package org.meteora.eval.statistics;
