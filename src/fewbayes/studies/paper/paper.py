"""What is known of the paper's own figures: digitised where a picture could be read, its words where not.

Fig. 1 was digitised from the picture in the authors' repository, to about 0.004 in Dino: Stable Diffusion 1.5,
DreamBooth, one image of a backpack, five runs. The values of the other figures are not published.
"""

FIG1_PLAIN = {
    0: 0.364, 20: 0.483, 50: 0.632, 75: 0.681, 100: 0.726, 150: 0.645, 200: 0.825, 250: 0.894, 300: 0.855, 350: 0.718,
    400: 0.551, 450: 0.570, 500: 0.460, 550: 0.473, 600: 0.477, 700: 0.40, 800: 0.477, 900: 0.370, 1000: 0.386,
    1200: 0.434, 1400: 0.496, 1600: 0.447, 1800: 0.510, 2000: 0.620, 2200: 0.630, 2400: 0.666, 2600: 0.707,
    2800: 0.846, 3000: 0.752, 3200: 0.883, 3400: 0.898, 3600: 0.903, 3800: 0.939, 4000: 0.945, 4200: 0.946,
    4400: 0.951, 4600: 0.953, 4800: 0.955, 5000: 0.958,
}  # fmt: skip
FIG1_BAYES = {
    0: 0.363, 20: 0.440, 50: 0.603, 75: 0.654, 100: 0.712, 150: 0.58, 200: 0.707, 250: 0.800, 300: 0.832, 350: 0.884,
    400: 0.944, 450: 0.947, 500: 0.951, 600: 0.945, 700: 0.961, 800: 0.958, 1000: 0.962, 1400: 0.968, 1800: 0.972,
    2000: 0.972, 2400: 0.964, 2800: 0.973, 3200: 0.972, 3800: 0.966, 4600: 0.966,
}  # fmt: skip
FIG1_STAGE = (450, 2070)
"""Between these iterations the paper marks its corruption stage."""

FIG2 = "With more training images corruption begins later and is less severe."
FIG3 = "The pretrained model hardly changes x_t = 0; models tuned on 1 and 5 images make a training image of it."
FIG4 = "sigma_1 is relatively high under moderate iterations, then drops."
FIG4_VALUE = (1000, 4.8)
"""Iteration and sigma_1: the one value in the text."""
FIG5 = "The pretrained model removes the disturbance, the fine-tuned one keeps it as a corruption pattern."
FIG5_GAIN = 2.65
"""||delta_100||^2 / ||delta'||^2 as printed; on this schedule no model can exceed 1 / alpha_bar (docs/theory.md)."""
FIG10 = "Pictures of the pretrained model asked for a blank, and its denoised blank, are free of noise."
FIG11 = "As Fig. 3, at t = 100, for more subjects."
FIG12 = "The fine-tuned model answers k x' with a multiple of x', the pretrained model does not."
FIG10_PROMPT = "a simple, solid gray image with no textures or variations"
