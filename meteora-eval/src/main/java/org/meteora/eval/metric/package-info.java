/** The metrics, a class each. */
package org.meteora.eval.metric;
